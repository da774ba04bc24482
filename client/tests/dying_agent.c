/* dying_agent SOCKET: a process in the middle of its death. The thread it began with has ended, so that it has no memory as
 * /proc tells, and its files are open as long as another thread lives. It says "listening", takes one connection, closes that at
 * the first byte of its stdin, says "closed", and ends with its stdin. */
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int listener;

static void say(const char *what) {
    puts(what);
    fflush(stdout);
}

static void *rest(void *unused) {
    char byte;
    int engine = accept(listener, NULL, NULL);
    if (engine >= 0 && read(0, &byte, 1) == 1) {
        close(engine);
        say("closed");
        while (read(0, &byte, 1) > 0) {
        }
    }
    _exit(0);
    return unused;
}

int main(int argc, char **argv) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    pthread_t thread;
    if (argc != 2 || strlen(argv[1]) >= sizeof at.sun_path) return 1;
    strcpy(at.sun_path, argv[1]);
    listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) != 0 || listen(listener, 1) != 0) return 1;
    if (pthread_create(&thread, NULL, rest, NULL) != 0) return 1;
    say("listening");
    pthread_exit(NULL);
}
