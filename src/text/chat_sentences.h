/* SPDX-License-Identifier: Apache-2.0
 *
 * Fixed texts that a template both prints and is recognised by.
 */
#ifndef SR_TEXT_CHAT_SENTENCES_H
#define SR_TEXT_CHAT_SENTENCES_H

#define SR_CHAT_SMOLLM2_SYSTEM "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
#define SR_CHAT_QWEN25_SYSTEM  "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
#define SR_CHAT_VICUNA_SYSTEM                                                                                \
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "  \
    "detailed, and polite answers to the user's questions."
#define SR_CHAT_LLAMA31_CUTOFF "Cutting Knowledge Date: December 2023\n"
#define SR_CHAT_LLAMA31_DATE   "26 Jul 2024"

#endif
