/* SPDX-License-Identifier: Apache-2.0
 *
 * One function per subcommand. Each returns the exit status; on an sr_status other than SR_OK, *err holds the
 * line that main prints. Numbers from 128 are signals and need no line.
 */
#ifndef SR_APP_COMMANDS_H
#define SR_APP_COMMANDS_H

#include "options.h"

int sr_cmd_run(const struct options *o, sr_error *err);
int sr_cmd_chat(const struct options *o, sr_error *err);
int sr_cmd_bench(const struct options *o, sr_error *err);
int sr_cmd_perplexity(const struct options *o, sr_error *err);
int sr_cmd_calibrate(const struct options *o, sr_error *err);
int sr_cmd_inspect(const struct options *o, sr_error *err);

#endif
