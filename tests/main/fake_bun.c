/* Stands in for `bash` and `bun` of an image with NanoClaw's runner, as contract 20 and 21 have them. As bash it knows
 * the two commands that a host gives; as bun it notes what it was started with and what it finds, and becomes our runner
 * in NanoClaw's flat layout. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

static void note(FILE *report, const char *path) {
    int readable = open(path, O_RDONLY);
    int writable = open(path, O_WRONLY | O_APPEND);
    fprintf(report, "%s%s %s\n", readable >= 0 ? "r" : "-", writable >= 0 ? "w" : "-", path);
    if (readable >= 0) close(readable);
    if (writable >= 0) close(writable);
}

static int creates(const char *path) {
    int fd = open(path, O_WRONLY | O_CREAT, 0644);
    if (fd < 0) return 0;
    close(fd);
    return 1;
}

/* What is mounted where the contract speaks of, and whether it could be written whoever it belonged to. */
static void mounts(FILE *report) {
    FILE *table = fopen("/proc/self/mounts", "r");
    char line[4096], target[4096], options[4096];
    while (table && fgets(line, sizeof line, table)) {
        if (sscanf(line, "%*s %4095s %*s %4095s", target, options) != 2) continue;
        int ours = !strcmp(target, "/") || !strncmp(target, "/workspace", 10) || !strncmp(target, "/home/", 6)
            || !strncmp(target, "/app", 4);
        if (ours) fprintf(report, "mount %s %.2s\n", target, options);
    }
    if (table) fclose(table);
}

static int bun(int count, char **words) {
    FILE *report = fopen("/workspace/report", "a");
    if (!report) return 5;
    fprintf(report, "command");
    for (int n = 0; n < count; n++) fprintf(report, " %s", words[n]);
    fprintf(report, "\nuser %d:%d\n", getuid(), getgid());
    for (char **it = environ; *it; it++) fprintf(report, "env %s\n", *it);
    fprintf(report, "parent %d\n", getppid());
    mounts(report);
    fprintf(report, "home-lasts %s\n", access("/home/node/mine", F_OK) ? "no" : "yes");
    fprintf(report, "state-lasts %s\n", access("/home/node/.claude/mine", F_OK) ? "no" : "yes");
    const char *paths[] = {"/workspace/inbound.db", "/workspace/outbound.db", "/workspace/agent/container.json",
                           "/app/src/index.ts", "/workspace/in/container.json"};
    for (size_t n = 0; n < sizeof paths / sizeof *paths; n++) note(report, paths[n]);
    const char *folders[] = {"/workspace/mine", "/workspace/agent/mine", "/home/node/mine", "/home/node/.claude/mine",
                             "/tmp/mine", "/app/src/mine", "/workspace/inbox/mine", "/mine"};
    for (size_t n = 0; n < sizeof folders / sizeof *folders; n++)
        fprintf(report, "creates %s %s\n", folders[n], creates(folders[n]) ? "yes" : "no");
    fprintf(report, "end\n");
    fclose(report);
    execl("/lamplighter-runner", "lamplighter-runner", "--workspace", "/workspace", (char *)NULL);
    return 6;
}

int main(int count, char **words) {
    const char *slash = strrchr(words[0], '/');
    const char *name = slash ? slash + 1 : words[0];
    if (!strcmp(name, "bun")) return bun(count, words);
    if (count != 3 || strcmp(words[1], "-c")) return 2;
    if (!strncmp(words[2], ": > ", 4)) return creates(words[2] + 4) ? 0 : 3;
    if (strcmp(words[2], "exec bun run /app/src/index.ts")) return 4;
    execl("/usr/local/bin/bun", "bun", "run", "/app/src/index.ts", (char *)NULL);
    return 7;
}
