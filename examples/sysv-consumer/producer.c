/*
 * An old program that sends to a System V message queue, and knows nothing of postbus:
 * each line of its standard input is a message.
 *
 *   cc -std=c99 -O2 -Wall -Wextra -o producer producer.c
 *   touch /tmp/orders
 *   seq 1000 | ./producer /tmp/orders A &
 *
 * Move its messages into a queue of the bus; none is lost, whoever is killed:
 *
 *   postbus queue create --level disk orders
 *   postbus sysv import --follow --path /tmp/orders --proj A orders
 *
 * Usage: producer FILE PROJ [TYPE]
 *
 * FILE and PROJ, a character, make the key, as in ftok(3). TYPE (default 1) becomes the
 * header sysv-type. It waits while the queue is full, and ends with its input.
 */
#define _XOPEN_SOURCE 700
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>

/* kernel.msgmax, unless it was raised: a longer line makes msgsnd fail with EINVAL. */
#define LONGEST 8192

struct message {
	long type;
	char body[LONGEST + 2]; /* a newline and a NUL */
};

static void die(const char *what)
{
	fprintf(stderr, "producer: %s: %s\n", what, strerror(errno));
	exit(1);
}

int main(int argc, char **argv)
{
	static struct message message;

	if (argc < 3 || argc > 4 || argv[2][0] == '\0' || argv[2][1] != '\0') {
		fprintf(stderr, "usage: producer FILE PROJ [TYPE]\n");
		return 2;
	}
	key_t key = ftok(argv[1], argv[2][0]);
	if (key == (key_t)-1)
		die(argv[1]);
	int queue = msgget(key, IPC_CREAT | 0600);
	if (queue == -1)
		die("msgget");

	message.type = argc > 3 ? atol(argv[3]) : 1;
	while (fgets(message.body, sizeof message.body, stdin) != NULL) {
		size_t size = strlen(message.body);
		if (size > 0 && message.body[size - 1] == '\n')
			size--;
		if (size > LONGEST) {
			fprintf(stderr, "producer: a line is longer than %d bytes\n", LONGEST);
			return 1;
		}
		while (msgsnd(queue, &message, size, 0) == -1)
			if (errno != EINTR) /* never restarted, signal(7) */
				die("msgsnd");
	}
	if (ferror(stdin))
		die("standard input");
	return 0;
}
