/*
 * An old program that receives from a System V message queue, and knows nothing of
 * postbus: it prints the body of each message, and a newline.
 *
 *   cc -std=c99 -O2 -Wall -Wextra -o consumer consumer.c
 *   touch /tmp/orders
 *   ./consumer /tmp/orders A &
 *
 * Feed it from a queue of the bus, so that no message is lost, whoever is killed:
 *
 *   postbus queue create --level disk orders
 *   postbus sysv export --queue orders --path /tmp/orders --proj A --create &
 *   postbus push orders 'two coffees'
 *
 * or with what is published to topics:
 *
 *   postbus sysv export 'orders/#' --path /tmp/orders --proj A --create &
 *
 * Usage: consumer FILE PROJ [COUNT [TYPE]]
 *
 * FILE and PROJ, a character, make the key, as in ftok(3). It ends after COUNT messages
 * (default 0: never) and when somebody removes the queue. TYPE is msgrcv's: 0 any (the
 * default), above 0 only that, below 0 the lowest up to it.
 */
#define _XOPEN_SOURCE 700
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>

struct message {
	long type;
	char body[];
};

static void die(const char *what)
{
	fprintf(stderr, "consumer: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void *resize(void *message, size_t size)
{
	message = realloc(message, sizeof(struct message) + size);
	if (message == NULL)
		die("memory for a message");
	return message;
}

int main(int argc, char **argv)
{
	if (argc < 3 || argc > 5 || argv[2][0] == '\0' || argv[2][1] != '\0') {
		fprintf(stderr, "usage: consumer FILE PROJ [COUNT [TYPE]]\n");
		return 2;
	}
	long count = argc > 3 ? atol(argv[3]) : 0;
	long type = argc > 4 ? atol(argv[4]) : 0;

	key_t key = ftok(argv[1], argv[2][0]);
	if (key == (key_t)-1) /* else this would be a queue common to all who do not look */
		die(argv[1]);
	/* Whoever comes first makes the queue. */
	int queue = msgget(key, IPC_CREAT | 0600);
	if (queue == -1)
		die("msgget");

	size_t room = 1024;
	struct message *message = resize(NULL, room);
	for (long n = 0; count == 0 || n < count;) {
		ssize_t size = msgrcv(queue, message, room, type, 0);
		if (size == -1 && errno == EINTR) /* never restarted, signal(7) */
			continue;
		if (size == -1 && errno == E2BIG) { /* the message stays; MSG_NOERROR would cut it */
			room *= 2;
			message = resize(message, room);
			continue;
		}
		if (size == -1 && errno == EIDRM)
			break;
		if (size == -1)
			die("msgrcv");
		if (fwrite(message->body, 1, (size_t)size, stdout) != (size_t)size || putchar('\n') == EOF || fflush(stdout) != 0)
			die("standard output");
		n++;
	}
	free(message);
	return 0;
}
