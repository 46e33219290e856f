/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory nodes of machines whose processors have memory of their own (NUMA). What all threads read in turns, K/V and
 * copied weights, is laid over the nodes page by page, so that it comes at the speed of all of them wherever the system
 * runs the threads. With one node, or where the user has set a policy (numactl), nothing is done.
 */
#ifndef SR_BASE_NODES_H
#define SR_BASE_NODES_H

#include <stddef.h>
#include <stdint.h>

enum { SR_NODES_MOST = 1024 };

struct node_set {
    unsigned long bits[SR_NODES_MOST / (8 * sizeof(unsigned long))];
    int n;
};

/* A list as the kernel writes them ("0-1,4"), up to its line's end; 0, or -1 if it is none. */
int sr_nodes_parse(struct node_set *out, const char *list);
/* Nodes that have memory (a file of such a list) and that this process may use (a "Mems_allowed_list:" line of a file). */
int sr_nodes_read(struct node_set *out, const char *has_memory_path, const char *status_path);
/* Pages of [p, p + bytes) that are touched from now on come from the nodes in turns; p begins a page. Returns whether it was
 * done: not with fewer than two nodes, and not if the system refuses. */
int sr_nodes_spread(const struct node_set *nodes, void *p, size_t bytes);
/* The same with this machine's nodes, read once. */
int sr_nodes_spread_here(void *p, size_t bytes);

#endif
