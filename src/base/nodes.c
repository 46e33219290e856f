/* SPDX-License-Identifier: Apache-2.0
 *
 * The nodes as the kernel's files tell them, and its calls for placing pages: no library is needed for the two.
 */
#include "base/nodes.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { POLICY_DEFAULT = 0, POLICY_INTERLEAVE = 3, WORD = 8 * sizeof(unsigned long) }; /* MPOL_ of linux/mempolicy.h */

static int has_node(const struct node_set *s, long node) { return (int)(s->bits[node / WORD] >> node % WORD & 1u); }

static int add_range(struct node_set *s, long first, long last)
{
    if (first < 0 || last < first || last >= SR_NODES_MOST) return -1;
    for (long i = first; i <= last; i++) {
        s->n += !has_node(s, i);
        s->bits[i / WORD] |= 1ul << i % WORD;
    }
    return 0;
}

int sr_nodes_parse(struct node_set *out, const char *list)
{
    struct node_set s = {{0}, 0};
    for (const char *at = list;; at++) {
        char *end;
        const long first = strtol(at, &end, 10);
        long last = first;
        if (end == at) return -1;
        if (*end == '-') {
            at = end + 1;
            last = strtol(at, &end, 10);
            if (end == at) return -1;
        }
        if (add_range(&s, first, last)) return -1;
        at = end;
        if (*at == '\0' || *at == '\n') break;
        if (*at != ',') return -1;
    }
    *out = s;
    return 0;
}

/* The list after `key` at the start of a line of a file. */
static int read_list(struct node_set *out, const char *path, const char *key)
{
    char line[4096];
    int st = -1;
    FILE *f = fopen(path, "re");
    if (!f) return -1;
    while (st && fgets(line, sizeof line, f))
        if (strncmp(line, key, strlen(key)) == 0) st = sr_nodes_parse(out, line + strlen(key));
    fclose(f);
    return st;
}

int sr_nodes_read(struct node_set *out, const char *has_memory_path, const char *status_path)
{
    struct node_set there, allowed, both = {{0}, 0};
    if (read_list(&there, has_memory_path, "") || read_list(&allowed, status_path, "Mems_allowed_list:")) return -1;
    for (long i = 0; i < SR_NODES_MOST; i++)
        if (has_node(&there, i) && has_node(&allowed, i)) add_range(&both, i, i);
    *out = both;
    return 0;
}

/* Whether the process has the policy that one has who was started without numactl. */
static int is_policy_default(void)
{
    int policy = -1;
    return syscall(SYS_get_mempolicy, &policy, NULL, 0ul, NULL, 0ul) == 0 && policy == POLICY_DEFAULT;
}

int sr_nodes_spread(const struct node_set *nodes, void *p, size_t bytes)
{
    if (nodes->n < 2 || !is_policy_default()) return 0;
    return syscall(SYS_mbind, p, bytes, POLICY_INTERLEAVE, nodes->bits, (unsigned long)SR_NODES_MOST, 0u) == 0;
}

int sr_nodes_spread_here(void *p, size_t bytes)
{
    static struct node_set here;
    static atomic_int state; /* 0 not read, 1 being read by somebody, 2 read */
    int is = 0;
    if (atomic_compare_exchange_strong(&state, &is, 1)) {
        if (sr_nodes_read(&here, "/sys/devices/system/node/has_memory", "/proc/self/status")) here.n = 0;
        atomic_store(&state, 2);
    } else if (is == 1) {
        return 0; /* two threads make their first region at once: this one stays where it is touched */
    }
    return sr_nodes_spread(&here, p, bytes);
}
