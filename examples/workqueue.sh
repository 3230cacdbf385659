#!/bin/sh
# A work queue in the shell: a producer, two workers, a job that fails at first and one
# that fails always. It needs postbus in PATH, runs on a bus of its own, and checks what
# came of it.
set -eu

# What pull runs for each job, which comes on standard input.
if [ "${1-}" = work ]; then
	job=$(cat)
	case $job in
	7) [ "$POSTBUS_TRIES" -gt 1 ] ;; # the first time it fails
	13) [ -e "$tools/13" ] ;;        # always, until what it needs is there
	esac
	echo "$job" >"$finished/$job" # a job can come twice: what it does must bear that
	exit
fi

tmp=$(mktemp -d)
export POSTBUS_ADDRESS="$tmp/bus" tools="$tmp/tools" finished="$tmp/finished"
mkdir "$tools" "$finished"
mkfifo "$tmp/ready"
postbus serve --dir "$tmp/bus" --log-level error --ready-fd 3 3>"$tmp/ready" &
broker=$! one='' two=''
trap 'kill $broker $one $two || :; wait $broker || :; rm -rf "$tmp"' EXIT
read -r line <"$tmp/ready" # clients can connect

postbus queue create jobs --level disk --max-tries 3

# The producer. When push has ended with 0 the jobs are on the disk.
seq 20 | postbus push -l jobs

# The workers: as many as you like. The job of one that dies goes to another.
postbus pull --follow --retry-delay 20ms jobs -- "$0" work &
one=$!
postbus pull --follow --retry-delay 20ms jobs -- "$0" work &
two=$!

postbus queue drain jobs # takes no more pushes, and waits until the queue is empty
kill $one $two           # they finish what they are at, and end with 0
wait $one
wait $two
one='' two=''

[ "$(ls "$finished" | wc -l)" -eq 19 ] || { echo "not all jobs were done" >&2; exit 1; }
echo "19 jobs are done, this one is not:"
postbus queue dead jobs

# The cause is mended: again, please.
touch "$tools/13"
postbus queue requeue jobs >/dev/null
postbus pull jobs -- "$0" work
[ "$(ls "$finished" | wc -l)" -eq 20 ] || { echo "job 13 was not done" >&2; exit 1; }
postbus queue rm jobs
echo "all 20 jobs are done"
