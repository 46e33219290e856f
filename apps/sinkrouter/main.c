/* SPDX-License-Identifier: Apache-2.0
 *
 * sinkrouter: dispatch to subcommands. The first argument is a command, or a flag of run.
 */
#include "commands.h"
#include "diag.h"
#include "flags.h"
#include "interrupt.h"
#include "progress.h"

#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <string.h>
#include <unistd.h>

static int dispatch(const struct options *o, sr_error *err)
{
    switch (o->command) {
    case CMD_RUN: return sr_cmd_run(o, err);
    case CMD_CHAT: return sr_cmd_chat(o, err);
    case CMD_BENCH: return sr_cmd_bench(o, err);
    case CMD_PERPLEXITY: return sr_cmd_perplexity(o, err);
    case CMD_CALIBRATE: return sr_cmd_calibrate(o, err);
    case CMD_INSPECT: return sr_cmd_inspect(o, err);
    }
    return SR_ERR_USAGE;
}

/* A buffered standard output that could not be written (bench, inspect, ...) is an error too. */
static int flush_stdout(int rc)
{
    if (fflush(stdout) == 0 && !ferror(stdout)) return rc;
    if (rc == 0) {
        sr_say("standard output: %s", strerror(errno));
        rc = SR_ERR_IO;
    }
    return rc;
}

static int wrong_usage(const char *text, const char *command)
{
    sr_say("%s (see sinkrouter %s%s--help)", text, command, *command ? " " : "");
    return SR_ERR_USAGE;
}

/* Chooses the command; *skip arguments are used up. */
static int pick_command(enum command *command, int argc, char **argv, int *skip)
{
    char shown[64], near[32], text[160];
    *command = CMD_RUN;
    *skip = 0;
    if (argc == 0) return wrong_usage("nothing to do", "");
    if (argv[0][0] == '-') return 0;
    *skip = 1;
    if (sr_command_find(command, argv[0])) return 0;
    const char *meant = sr_nearest(near, sizeof near, argv[0], "run chat bench perplexity calibrate inspect");
    snprintf(text, sizeof text, "\"%s\": unknown command%s%s%s", sr_visible(shown, sizeof shown, argv[0]),
             meant ? "; did you mean " : "", meant ? meant : "", meant ? "?" : "");
    return wrong_usage(text, "");
}

static int list_devices(void)
{
    char line[160];
    int n = 0;
    printf("Available devices:\n");
    while (sr_device_get(n, line, sizeof line)) {
        printf("  %s\n", line);
        n++;
    }
    if (n == 0) printf("  (none)\n");
    return 0;
}

static int execute(struct options *o, sr_error *err)
{
    int rc =
        (int)sr_diag_open(o->log_file, o->quiet || o->verbosity < 2, o->verbose || o->verbosity > 3, err);
    if (!rc) sr_flags_note_idle(o);
    if (!rc) rc = dispatch(o, err);
    sr_progress_clear();
    if (rc == SR_ERR_USAGE)
        wrong_usage(err->text, sr_command_name(o->command));
    else if (rc > 0 && rc < 128)
        sr_say("%s", err->text);
    return rc;
}

/* A standard descriptor that the caller closed must not become the number of a model or session file. What is
 * opened here for writing refuses it, as the closed one would. */
static void occupy_standard_descriptors(void)
{
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY) != fd)
            _exit(SR_ERR_IO);
}

static int program(int argc, char **argv)
{
    struct options o;
    sr_error err = {SR_OK, ""};
    enum command command;
    int skip, rc;
    occupy_standard_descriptors();
    setlocale(LC_CTYPE, "");
    sr_interrupt_init();
    if ((argc > 1 && strcmp(argv[1], "--version") == 0) || (argc > 2 && strcmp(argv[2], "--version") == 0)) {
        printf("sinkrouter %s\n", sr_version());
        return flush_stdout(0);
    }
    if (argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        sr_help();
        return flush_stdout(0);
    }
    rc = pick_command(&command, argc - 1, argv + 1, &skip);
    if (rc) return rc;
    sr_options_default(&o, command);
    if (sr_flags_parse(&o, argc - 1 - skip, argv + 1 + skip, &err))
        return wrong_usage(err.text, sr_command_name(command));
    if (o.help) {
        sr_flags_help(command);
        return flush_stdout(0);
    }
    return sr_diag_close(flush_stdout(o.list_devices ? list_devices() : execute(&o, &err)));
}

/* Without exit(): there OpenBLAS waits for threads of its own, of which one that finds no memory for its buffer (ulimit -v) never
 * ends. All that is written was flushed or closed. */
int main(int argc, char **argv)
{
    _exit(program(argc, argv));
}
