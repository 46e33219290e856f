/* SPDX-License-Identifier: Apache-2.0
 *
 * Templates of our own, for files without one and for --chat-template NAME.
 */
#ifndef SR_TEXT_CHAT_BUILTIN_H
#define SR_TEXT_CHAT_BUILTIN_H

struct chat_builtin {
    const char *name, *program;
    /* Without these as tokens a model of the family would read its own turn marks as words. ChatML is also
     * used over vocabularies that lack its marks, as plain text, so it asks for none. NULL-terminated. */
    const char *needs[5];
};

/* Rows end with name == NULL. */
extern const struct chat_builtin sr_chat_builtins[];

#endif
