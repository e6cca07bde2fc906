/* Runs in a container as the agent would, tries what the word PROBE says, and writes what came of it into
 * /workspace/report: one line a trial, "NAME YES" or "NAME no (REASON)", and "done YES" after the last. Then it waits to be
 * ended. The image has it twice: as /gain it belongs to root and has the set-user-id bit. What an agent must not be able
 * to do is tried by both, so that it is not only the agent's number that stands in the way. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

/* What the names of trials begin with: who tries. */
static const char *who = "";

static void say(const char *trial, int done) {
    int reason = errno;
    if (done) dprintf(STDOUT_FILENO, "%s%s YES\n", who, trial);
    else dprintf(STDOUT_FILENO, "%s%s no (%s)\n", who, trial, strerror(reason));
    errno = 0;
}

static int writes(const char *path) {
    int fd = open(path, O_WRONLY | O_CREAT, 0644);
    if (fd < 0) return 0;
    close(fd);
    return 1;
}

/* What the host wrote, and what the image holds. */
static void files(void) {
    say("write-in", writes("/workspace/in/planted"));
    say("write-inbound-db", writes("/workspace/in/inbound.db"));
    say("remove-in", unlink("/workspace/in/container.json") == 0);
    say("move-in", rename("/workspace/in", "/workspace/other") == 0);
    say("remount-in", mount(NULL, "/workspace/in", NULL, MS_REMOUNT | MS_BIND, NULL) == 0);
    say("write-root", writes("/planted"));
    say("write-program", chmod("/program", 0777) == 0);
}

/* What an agent needs. */
static void needs(void) {
    say("write-workspace", writes("/workspace/mine"));
    say("write-tmp", writes("/tmp/mine"));
    say("write-home", writes("/home/agent/mine"));
    say("write-agent", writes("/workspace/agent/mine"));
    say("write-state", writes("/home/agent/.claude/mine"));
}

/* A line of /proc/PID/status as a number; -1 where there is none. */
static long long status_of(const char *process, const char *name, int base) {
    char path[64], line[256];
    long long found = -1;
    snprintf(path, sizeof path, "/proc/%s/status", process);
    FILE *status = fopen(path, "r");
    while (status && fgets(line, sizeof line, status))
        if (!strncmp(line, name, strlen(name))) found = strtoll(line + strlen(name), NULL, base);
    if (status) fclose(status);
    return found;
}

static int has_capabilities(const char *process) {
    const char *sets[] = {"CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"};
    for (size_t n = 0; n < sizeof sets / sizeof *sets; n++)
        if (status_of(process, sets[n], 16) != 0) return 1;
    return 0;
}

/* Each takes a right that an agent has not. */
static void rights(void) {
    char mine[PATH_MAX], device[PATH_MAX];
    snprintf(mine, sizeof mine, "/tmp/%smine", who);
    snprintf(device, sizeof device, "/tmp/%sdevice", who);
    /* Whoever became root by the set-user-id bit is root in full after this. */
    int became = setuid(0) == 0;
    say("root", became || getuid() == 0 || geteuid() == 0 || getgid() == 0 || getegid() == 0);
    say("capabilities", has_capabilities("self"));
    say("chown", writes(mine) && chown(mine, 4711, 4711) == 0);
    say("mknod", mknod(device, S_IFCHR | 0600, makedev(1, 3)) == 0);
    say("raw-socket", socket(AF_INET, SOCK_RAW, IPPROTO_ICMP) >= 0);
    say("mount", mount("none", "/tmp", "tmpfs", 0, NULL) == 0);
    say("user-namespace", unshare(CLONE_NEWUSER) == 0);
    say("host-name", sethostname("mine", 4) == 0);
}

/* The same by the program that belongs to root. */
static void gain(const char *trial) {
    pid_t pid = fork();
    if (pid == 0) {
        execl("/gain", "gain", trial, (char *)NULL);
        _exit(1);
    }
    int end = 0;
    waitpid(pid, &end, 0);
    say("gain-ran", WIFEXITED(end) && WEXITSTATUS(end) == 0);
}

/* How many processes can be had at once. */
static int processes(void) {
    enum { WANTED = 200 };
    pid_t all[WANTED];
    int had = 0;
    while (had < WANTED) {
        pid_t pid = fork();
        if (pid == 0) {
            pause();
            _exit(0);
        }
        if (pid < 0) break;
        all[had++] = pid;
    }
    int reason = errno;
    for (int n = 0; n < had; n++) {
        kill(all[n], SIGKILL);
        waitpid(all[n], NULL, 0);
    }
    errno = reason;
    return had;
}

/* Most entries and deepest folder that are looked at, and most of a file. */
enum { ENTRIES_MAX = 200000, DEPTH_MAX = 64, TEXT_MAX = 1 << 20 };
static int entries;
static const char *marks[2];
static int named[2], written[2];

/* File systems that hold no files but what the kernel says. */
static int of_the_kernel(const char *path) {
    struct statfs it;
    if (statfs(path, &it)) return 0;
    switch ((unsigned long)it.f_type) {
    case PROC_SUPER_MAGIC: case SYSFS_MAGIC: case CGROUP_SUPER_MAGIC: case CGROUP2_SUPER_MAGIC:
    case DEVPTS_SUPER_MAGIC: case 0x19800202: /* message queues */
        return 1;
    }
    return 0;
}

static void read_text(const char *path) {
    static char text[TEXT_MAX];
    int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
    ssize_t length = fd < 0 ? 0 : read(fd, text, sizeof text);
    for (int n = 0; n < 2; n++)
        if (length > 0 && memmem(text, length, marks[n], strlen(marks[n]))) written[n]++;
    if (fd >= 0) close(fd);
}

/* Looks for both marks in each name and each text below a folder. */
static void search(const char *folder, int depth) {
    DIR *open = opendir(folder);
    struct dirent *entry;
    while (open && (entry = readdir(open)) && entries < ENTRIES_MAX && depth < DEPTH_MAX) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        char path[PATH_MAX];
        struct stat it;
        if (snprintf(path, sizeof path, "%s/%s", strcmp(folder, "/") ? folder : "", entry->d_name) >= PATH_MAX) continue;
        entries++;
        for (int n = 0; n < 2; n++) named[n] += strstr(entry->d_name, marks[n]) != NULL;
        if (lstat(path, &it)) continue;
        if (S_ISDIR(it.st_mode) && !of_the_kernel(path)) search(path, depth + 1);
        if (S_ISREG(it.st_mode)) read_text(path);
    }
    if (open) closedir(open);
}

/* Looks for THEIRS, which is in files of another session only, and for OWN, which is put into two of its own, so that a
 * search that finds nothing is known from one that does not search. */
static void others(void) {
    marks[0] = getenv("THEIRS");
    marks[1] = getenv("OWN");
    if (!marks[0] || !marks[1]) return;
    char path[PATH_MAX];
    mkdir("/tmp/deep", 0755);
    snprintf(path, sizeof path, "/tmp/deep/%s", marks[1]);
    writes(path);
    int fd = open("/workspace/agent/note", O_WRONLY | O_CREAT, 0644);
    dprintf(fd, "found by its text: %s\n", marks[1]);
    close(fd);
    search("/", 0);
    say("searched-all", entries < ENTRIES_MAX);
    say("own-name", named[1] > 0);
    say("own-text", written[1] > 0);
    say("their-name", named[0] > 0);
    say("their-text", written[0] > 0);
    say("the-engine", access("/var/run/docker.sock", F_OK) == 0 || access("/run/docker.sock", F_OK) == 0);
    /* Itself and the engine's first process, which must be no way to more. */
    int seen = 0;
    DIR *proc = opendir("/proc");
    struct dirent *entry;
    while (proc && (entry = readdir(proc))) seen += entry->d_name[0] >= '0' && entry->d_name[0] <= '9';
    say("other-processes", seen != 2);
    say("first-process-may-more", status_of("1", "Uid:", 10) != (long long)getuid() || has_capabilities("1"));
}

/* Where each mount lies, whether it can be written whoever it belongs to, its kind, and what of it is mounted. */
static void mounts(void) {
    FILE *table = fopen("/proc/self/mountinfo", "r");
    char line[8192], root[4096], target[4096], options[256], kind[64];
    while (table && fgets(line, sizeof line, table)) {
        const char *rest = strstr(line, " - ");
        if (rest && sscanf(line, "%*s %*s %*s %4095s %4095s %255s", root, target, options) == 3
            && sscanf(rest, " - %63s", kind) == 1)
            dprintf(STDOUT_FILENO, "mounted %s %.2s %s %s\n", target, options, kind, root);
    }
    if (table) fclose(table);
}

static void told(int signal) {
    (void)signal;
    (void)!write(STDOUT_FILENO, "told YES\n", 9);
}

int main(int argc, char **argv) {
    const char *slash = strrchr(argv[0], '/');
    int is_gain = !strcmp(slash ? slash + 1 : argv[0], "gain");
    /* As every runner: by this a host sees whose the files of its containers are. */
    if (argc == 3 && !strcmp(argv[1], "probe")) return writes(argv[2]) ? 0 : 4;
    const char *trial = is_gain && argc == 2 ? argv[1] : getenv("PROBE");
    if (!trial) return 3;
    if (is_gain) {
        who = "gain-";
        if (!strcmp(trial, "files")) files();
        if (!strcmp(trial, "rights")) rights();
        return 0;
    }
    int report = open("/workspace/report", O_WRONLY | O_CREAT | O_APPEND, 0644);
    if (report < 0 || dup2(report, STDOUT_FILENO) < 0) return 3;
    if (!strcmp(trial, "files")) {
        files();
        gain(trial);
        needs();
        mounts();
    } else if (!strcmp(trial, "rights")) {
        rights();
        gain(trial);
    } else if (!strcmp(trial, "sessions")) {
        others();
        mounts();
    } else if (!strcmp(trial, "processes")) {
        say("more-than-64", processes() > 64);
    } else if (!strcmp(trial, "memory")) {
        size_t step = 1 << 20;
        for (int n = 0; n < 256; n++) {
            char *page = malloc(step);
            if (page) memset(page, n + 1, step);
        }
        say("256-MiB", 1);
    } else if (!strcmp(trial, "deaf")) {
        signal(SIGTERM, told);
    } else if (!strcmp(trial, "fill")) {
        static char piece[1 << 16];
        say("begun", 1);
        memset(piece, 'x', sizeof piece);
        int fd = open("/workspace/big", O_WRONLY | O_CREAT | O_TRUNC, 0644);
        for (int n = 0; n < 16 * 32; n++) {
            if (write(fd, piece, sizeof piece) < 0) return 4;
        }
    } else {
        return 3;
    }
    say("done", 1);
    for (;;) pause();
}
