/* SPDX-License-Identifier: Apache-2.0
 *
 * Each program below does what the published template of its family does; strip and newline rules are theirs,
 * white space included. tests/unit/test_chat.c holds them against texts that other engines rendered.
 */
#include "text/chat_builtin.h"

#include <stddef.h>

/* ---- ChatML ---- */

#define CHATML_TURNS                                                                                         \
    "{%- for m in messages -%}"                                                                              \
    "{{ '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' }}"                                    \
    "{%- endfor -%}"
#define CHATML_PROMPT "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
#define DEFAULT_SYSTEM(text)                                                                                 \
    "{%- if messages[0].role != 'system' -%}{{ '<|im_start|>system\\n" text "<|im_end|>\\n' }}{%- endif -%}"

/* ---- Qwen: tools ---- */

#define QWEN_TOOLS                                                                                           \
    "{{ '# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n'"              \
    " 'You are provided with function signatures within <tools></tools> XML tags:\\n<tools>' }}"             \
    "{%- for tool in tools -%}{{ '\\n' ~ tool | tojson }}{%- endfor -%}"                                     \
    "{{ '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments "    \
    "within '"                                                                                               \
    " '<tool_call></tool_call> XML tags:\\n<tool_call>\\n{\"name\": <function-name>, \"arguments\": '"       \
    " '<args-json-object>}\\n</tool_call><|im_end|>\\n' }}"

/* Arguments may be text already; results that follow each other share one turn. */
#define QWEN_CALL                                                                                            \
    "{%- set f = call.function if call.function else call -%}"                                               \
    "{{ '<tool_call>\\n{\"name\": \"' ~ f.name ~ '\", \"arguments\": '"                                      \
    " ~ (f.arguments if f.arguments is string else f.arguments | tojson) ~ '}\\n</tool_call>' }}"
#define QWEN_RESULT                                                                                          \
    "{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}{{ '<|im_start|>user' }}{%- endif -%}" \
    "{{ '\\n<tool_response>\\n' ~ m.content ~ '\\n</tool_response>' }}"                                      \
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{ '<|im_end|>\\n' }}{%- endif -%}"

#define QWEN25                                                                                               \
    "{%- set given = messages[0].role == 'system' -%}"                                                       \
    "{%- set system = messages[0].content if given else"                                                     \
    " 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' -%}"                            \
    "{{ '<|im_start|>system\\n' ~ system }}"                                                                 \
    "{%- if tools -%}{{ '\\n\\n' }}" QWEN_TOOLS "{%- else -%}{{ '<|im_end|>\\n' }}{%- endif -%}"             \
    "{%- for m in messages -%}"                                                                              \
    "{%- if m.role == 'user' or (m.role == 'system' and not loop.first) or (m.role == 'assistant' and not "  \
    "m.tool_calls) -%}"                                                                                      \
    "{{ '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' }}"                                    \
    "{%- elif m.role == 'assistant' -%}"                                                                     \
    "{{ '<|im_start|>assistant' ~ ('\\n' ~ m.content if m.content else '') }}"                               \
    "{%- for call in m.tool_calls -%}{{ '\\n' }}" QWEN_CALL "{%- endfor -%}{{ '<|im_end|>\\n' }}"            \
    "{%- elif m.role == 'tool' -%}" QWEN_RESULT "{%- endif -%}"                                              \
    "{%- endfor -%}" CHATML_PROMPT

/* Thinking is dropped from answers before the last question and kept after it; a tool's result in a user's
 * turn is no question. */
#define QWEN3                                                                                                \
    "{%- set given = messages[0].role == 'system' -%}"                                                       \
    "{%- if tools -%}{{ '<|im_start|>system\\n' ~ (messages[0].content ~ '\\n\\n' if given else '') "        \
    "}}" QWEN_TOOLS                                                                                          \
    "{%- elif given -%}{{ '<|im_start|>system\\n' ~ messages[0].content ~ '<|im_end|>\\n' }}{%- endif -%}"   \
    "{%- set ns = namespace(question=messages | length - 1) -%}"                                             \
    "{%- for m in messages -%}"                                                                              \
    "{%- if m.role == 'user' and not (m.content.startswith('<tool_response>') and "                          \
    "m.content.endswith('</tool_response>')) -%}"                                                            \
    "{%- set ns.question = loop.index0 -%}{%- endif -%}{%- endfor -%}"                                       \
    "{%- for m in messages -%}"                                                                              \
    "{%- if m.role == 'user' or (m.role == 'system' and not loop.first) -%}"                                 \
    "{{ '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' }}"                                    \
    "{%- elif m.role == 'assistant' -%}"                                                                     \
    "{%- set content = m.content -%}{%- set thoughts = m.reasoning_content -%}"                              \
    "{%- if thoughts is not string -%}{%- set thoughts = '' -%}"                                             \
    "{%- if '</think>' in content -%}"                                                                       \
    "{%- set thoughts = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}"   \
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}{%- endif -%}{%- endif -%}"            \
    "{{ '<|im_start|>assistant\\n' }}"                                                                       \
    "{%- if loop.index0 > ns.question and (loop.last or thoughts) -%}"                                       \
    "{{ '<think>\\n' ~ thoughts.strip('\\n') ~ '\\n</think>\\n\\n' ~ content.lstrip('\\n') }}"               \
    "{%- else -%}{{ content }}{%- endif -%}"                                                                 \
    "{%- for call in m.tool_calls or [] -%}"                                                                 \
    "{%- if content or not loop.first -%}{{ '\\n' }}{%- endif -%}" QWEN_CALL "{%- endfor -%}"                \
    "{{ '<|im_end|>\\n' }}"                                                                                  \
    "{%- elif m.role == 'tool' -%}" QWEN_RESULT "{%- endif -%}"                                              \
    "{%- endfor -%}" CHATML_PROMPT                                                                           \
    "{%- if add_generation_prompt and enable_thinking is defined and enable_thinking is false -%}"           \
    "{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}"

/* ---- Llama ---- */

/* After an optional system message, user and assistant in turn; m is the message, loop the loop over those
 * after it. */
#define ALTERNATE                                                                                            \
    "{%- if m.role == 'system' -%}{{ raise_exception('a system message can only come first') }}"             \
    "{%- elif (m.role == 'user') != (loop.index0 % 2 == 0) or m.role == 'tool' -%}"                          \
    "{{ raise_exception('message ' ~ loop.index ~ ': roles must alternate user, assistant, user, ...') "     \
    "}}{%- endif -%}"
#define NEEDS_USER                                                                                           \
    "{%- set given = messages[0].role == 'system' -%}"                                                       \
    "{%- set turns = messages[1:] if given else messages -%}"                                                \
    "{%- if not turns -%}{{ raise_exception('a user message is needed') }}{%- endif -%}"

/* The first question carries the system text, and the pair is stripped as one. */
#define LLAMA2                                                                                               \
    NEEDS_USER "{%- for m in turns -%}" ALTERNATE                                                            \
               "{%- set text = '<<SYS>>\\n' ~ messages[0].content ~ '\\n<</SYS>>\\n\\n' ~ m.content if "     \
               "loop.first and given else m.content -%}"                                                     \
               "{{ '<s>[INST] ' ~ text.strip() ~ ' [/INST]' if m.role == 'user' else ' ' ~ text.strip() ~ "  \
               "' </s>' }}"                                                                                  \
               "{%- endfor -%}"

#define LLAMA3_TURN                                                                                          \
    "{{ '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\\n\\n' ~ m.content.strip() ~ '<|eot_id|>' }}"
#define LLAMA3_PROMPT                                                                                        \
    "{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif "  \
    "-%}"
#define LLAMA3 "{{ '<|begin_of_text|>' }}{%- for m in messages -%}" LLAMA3_TURN "{%- endfor -%}" LLAMA3_PROMPT

/* Tools stand before the first question; one call per answer; results are JSON in the role ipython. */
#define LLAMA31                                                                                              \
    "{%- set given = messages[0].role == 'system' -%}"                                                       \
    "{%- set turns = messages[1:] if given else messages -%}"                                                \
    "{{ '<|begin_of_text|><|start_header_id|>system<|end_header_id|>\\n\\n' }}"                              \
    "{%- if tools -%}{{ 'Environment: ipython\\n' }}{%- endif -%}"                                           \
    "{{ 'Cutting Knowledge Date: December 2023\\nToday Date: ' ~ (date_string or '26 Jul 2024') ~ '\\n\\n' " \
    "}}"                                                                                                     \
    "{{ (messages[0].content.strip() if given else '') ~ '<|eot_id|>' }}"                                    \
    "{%- if tools and (not turns or turns[0].role != 'user') -%}"                                            \
    "{{ raise_exception('tools need a first user message to stand in') }}{%- endif -%}"                      \
    "{%- for m in turns -%}"                                                                                 \
    "{%- if tools and loop.first -%}"                                                                        \
    "{{ '<|start_header_id|>user<|end_header_id|>\\n\\nGiven the following functions, please respond with "  \
    "a JSON for a '"                                                                                         \
    " 'function call with its proper arguments that best answers the given prompt.\\n\\nRespond in the "     \
    "format '"                                                                                               \
    " '{\"name\": function name, \"parameters\": dictionary of argument name and its value}.Do not use "     \
    "variables.\\n\\n' }}"                                                                                   \
    "{%- for tool in tools -%}{{ tool | tojson(indent=4) ~ '\\n\\n' }}{%- endfor -%}"                        \
    "{{ m.content.strip() ~ '<|eot_id|>' }}"                                                                 \
    "{%- elif m.role == 'tool' -%}"                                                                          \
    "{{ '<|start_header_id|>ipython<|end_header_id|>\\n\\n' ~ m.content | tojson ~ '<|eot_id|>' }}"          \
    "{%- elif m.tool_calls -%}"                                                                              \
    "{%- if m.tool_calls | length > 1 -%}{{ raise_exception('one tool call per message') }}{%- endif -%}"    \
    "{%- set f = m.tool_calls[0].function -%}"                                                               \
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n{\"name\": \"' ~ f.name ~ '\", \"parameters\": " \
    "' ~ f.arguments | tojson ~ '}<|eot_id|>' }}"                                                            \
    "{%- else -%}" LLAMA3_TURN "{%- endif -%}"                                                               \
    "{%- endfor -%}" LLAMA3_PROMPT

/* ---- Vicuna, Zephyr ---- */

#define VICUNA                                                                                               \
    NEEDS_USER                                                                                               \
    "{%- set system = messages[0].content if given else 'A chat between a curious user and an artificial "   \
    "intelligence '"                                                                                         \
    " 'assistant. The assistant gives helpful, detailed, and polite answers to the user\\'s questions.' -%}" \
    "{{ system ~ (' ' if system else '') }}"                                                                 \
    "{%- for m in turns -%}" ALTERNATE                                                                       \
    "{{ 'USER: ' ~ m.content if m.role == 'user' else ' ASSISTANT: ' ~ m.content ~ '</s>' }}"                \
    "{%- endfor -%}"                                                                                         \
    "{%- if add_generation_prompt -%}{{ (' ' if turns[-1].role == 'user' else '') ~ 'ASSISTANT:' }}{%- "     \
    "endif -%}"

#define ZEPHYR                                                                                               \
    "{%- for m in messages -%}{{ '<|' ~ m.role ~ '|>\\n' ~ m.content ~ '</s>\\n' }}{%- endfor -%}"           \
    "{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- endif -%}"

#define LLAMA3_MARKS                                                                                         \
    {                                                                                                        \
        "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", NULL                  \
    }

const struct chat_builtin sr_chat_builtins[] = {
    {"chatml", CHATML_TURNS CHATML_PROMPT, {NULL}},
    {"smollm2",
     DEFAULT_SYSTEM("You are a helpful AI assistant named SmolLM, trained by Hugging Face")
         CHATML_TURNS CHATML_PROMPT,
     {NULL}},
    {"qwen2.5", QWEN25, {NULL}},
    {"qwen3", QWEN3, {NULL}},
    {"llama2", LLAMA2, {"<s>", "</s>", NULL}},
    {"llama3", LLAMA3, LLAMA3_MARKS},
    {"llama3.1", LLAMA31, LLAMA3_MARKS},
    {"vicuna", VICUNA, {"</s>", NULL}},
    {"zephyr", ZEPHYR, {"</s>", NULL}},
    {NULL, NULL, {NULL}},
};
