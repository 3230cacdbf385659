package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// read returns a file of the host, "" where it cannot be read.
func (d *doctor) read(path string) string {
	text, err := os.ReadFile(filepath.Join(d.host, path))
	if err != nil {
		return ""
	}
	return string(text)
}

// limit returns a limit of the kernel, and what Linux has by default where it can't be read.
func (d *doctor) limit(name string, usual int) int {
	n, err := strconv.Atoi(strings.TrimSpace(d.read("/proc/sys/kernel/" + name)))
	if err != nil || n <= 0 {
		return usual
	}
	return n
}

// What Linux has where nobody changed it (proc_sys_kernel(5)).
const (
	usualMsgmax = 8192
	usualMsgmnb = 16384
	usualMsgmni = 32000
)

// segmentsPerQueue is how many kernel queues a queue may have.
const segmentsPerQueue = 254

func (d *doctor) examineLimits() {
	msgmax, msgmnb, msgmni := d.limit("msgmax", usualMsgmax), d.limit("msgmnb", usualMsgmnb), d.limit("msgmni", usualMsgmni)
	snippet := func(name string, n int) string {
		return fmt.Sprintf("echo 'kernel.%s = %d' >/etc/sysctl.d/60-postbus-%s.conf && sysctl --system", name, n, name)
	}
	means := fmt.Sprintf("kernel.msgmnb is %d and kernel.msgmax %d: a queue of level kernel takes %d kernel queues of %d bytes, %s in all; "+
		"its longer messages are cut at %d bytes, an old program's must fit that", msgmnb, msgmax, segmentsPerQueue, msgmnb,
		roundSize(segmentsPerQueue*msgmnb), min(msgmax, msgmnb))
	switch {
	case msgmnb < usualMsgmnb:
		d.attention("limits", snippet("msgmnb", usualMsgmnb), "%s; that is less than Linux's %d", means, usualMsgmnb)
	case msgmax < usualMsgmax:
		d.attention("limits", snippet("msgmax", usualMsgmax), "%s; that is less than Linux's %d", means, usualMsgmax)
	case msgmax > msgmnb:
		d.attention("limits", snippet("msgmnb", 2*msgmax), "%s; what is between the two fits no kernel queue", means)
	case msgmnb == usualMsgmnb:
		d.ok("limits", "%s; for more: %s", means, snippet("msgmnb", 1<<20))
	default:
		d.ok("limits", "%s", means)
	}
	used := len(d.queues)
	if msgmni-used < segmentsPerQueue {
		d.attention("room", snippet("msgmni", 2*max(msgmni, usualMsgmni))+", and look for who makes them: postbus sysv ls",
			"%d of %d kernel queues are in use (kernel.msgmni), of all users; a full queue of level kernel needs %d", used, msgmni, segmentsPerQueue)
		return
	}
	d.ok("room", "%d of %d kernel queues are in use (kernel.msgmni), of all users", used, msgmni)
}

// roundSize writes a number of bytes for a person.
func roundSize(n int) string {
	if n >= 10<<20 {
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}

// examineRemoveIPC tells whether systemd-logind removes the broker's queues when its user's last
// session ends (logind.conf(5)).
func (d *doctor) examineRemoveIPC() {
	if _, err := os.Stat(filepath.Join(d.host, "/run/systemd/sessions")); err != nil {
		d.ok("remove-ipc", "systemd-logind does not run here")
		return
	}
	uid := os.Geteuid()
	var st unix.Stat_t
	if unix.Stat(d.dir, &st) == nil { // the broker's, most likely
		uid = int(st.Uid)
	}
	value, from := d.logindRemoveIPC()
	switch limit := d.lastSystemUID(); {
	case uid <= limit:
		d.ok("remove-ipc", "uid %d (%s) is a system user, up to %d: systemd-logind leaves its kernel queues alone", uid, userName(uid), limit)
	case !value:
		d.ok("remove-ipc", "RemoveIPC=no in %s: kernel queues outlive their user's logout", from)
	default:
		d.attention("remove-ipc",
			"run the broker as a system user, or: mkdir -p /etc/systemd/logind.conf.d && "+
				"printf '[Login]\\nRemoveIPC=no\\n' >/etc/systemd/logind.conf.d/60-postbus.conf && systemctl restart systemd-logind, "+
				"or: loginctl enable-linger "+userName(uid),
			"at the last logout of %s (uid %d) systemd-logind removes all its kernel queues with their messages (RemoveIPC=yes, %s)",
			userName(uid), uid, from)
	}
}

// logindRemoveIPC returns the value of RemoveIPC and where it comes from.
func (d *doctor) logindRemoveIPC() (value bool, from string) {
	value, from = true, "the default"
	for _, path := range d.configFiles("systemd/logind.conf") {
		section := ""
		for line := range strings.Lines(d.read(path)) {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "[") {
				section = line
			}
			name, v, ok := strings.Cut(line, "=")
			if b, known := parseBool(strings.TrimSpace(v)); ok && known && section == "[Login]" && strings.TrimSpace(name) == "RemoveIPC" {
				value, from = b, path
			}
		}
	}
	return value, from
}

// parseBool reads a switch as systemd does (systemd.syntax(7)).
func parseBool(s string) (value, ok bool) {
	switch strings.ToLower(s) {
	case "1", "yes", "y", "true", "t", "on":
		return true, true
	case "0", "no", "n", "false", "f", "off":
		return false, true
	}
	return false, false
}

// systemdPlaces are where systemd looks for its files, the most important first.
var systemdPlaces = []string{"/etc", "/run", "/usr/local/lib", "/usr/lib", "/lib"}

// configFiles returns the file that systemd reads for name and its drop-ins, in the order in which they count.
func (d *doctor) configFiles(name string) (paths []string) {
	dropIns := make(map[string]string)
	for _, place := range systemdPlaces {
		if path := filepath.Join(place, name); len(paths) == 0 && d.there(path) {
			paths = append(paths, path)
		}
		found, _ := filepath.Glob(filepath.Join(d.host, place, name+".d", "*.conf"))
		for _, path := range found {
			if base := filepath.Base(path); dropIns[base] == "" {
				dropIns[base] = filepath.Join(place, name+".d", base)
			}
		}
	}
	names := make([]string, 0, len(dropIns))
	for base := range dropIns {
		names = append(names, base)
	}
	slices.Sort(names)
	for _, base := range names {
		paths = append(paths, dropIns[base])
	}
	return paths
}

func (d *doctor) there(path string) bool {
	_, err := os.Stat(filepath.Join(d.host, path))
	return err == nil
}

// lastSystemUID returns the highest uid of a system user (login.defs(5)).
func (d *doctor) lastSystemUID() int {
	for lines := bufio.NewScanner(strings.NewReader(d.read("/etc/login.defs"))); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) == 2 && fields[0] == "SYS_UID_MAX" {
			if n, err := strconv.Atoi(fields[1]); err == nil {
				return n
			}
		}
	}
	return 999
}

// examineNamespace compares the IPC namespace with that of the first process.
func (d *doctor) examineNamespace() {
	own, err := os.Readlink(filepath.Join(d.host, "/proc/self/ns/ipc"))
	if err != nil {
		d.note("namespace", "this kernel tells of no IPC namespaces")
		return
	}
	first, err := os.Readlink(filepath.Join(d.host, "/proc/1/ns/ipc"))
	switch {
	case errors.Is(err, fs.ErrPermission):
		d.note("namespace", "%s; this user cannot see whether that is the host's", own)
	case err != nil:
		d.note("namespace", "%s; that of process 1 cannot be read: %v", own, err)
	case own != first:
		d.attention("namespace", "run the broker in the host's: without unshare -i and PrivateIPC=, in a container with --ipc=host",
			"this is %s and process 1's is %s: kernel queues made here end with this namespace, and programs outside do not see them", own, first)
	default:
		d.ok("namespace", "%s, as process 1's; programs in other containers do not see these kernel queues", own)
	}
}

// examineCopy tells whether the kernel has MSG_COPY: by a file that comes with the same option.
func (d *doctor) examineCopy() {
	if d.there("/proc/sys/kernel/msg_next_id") {
		d.ok("msg-copy", "this kernel has MSG_COPY")
		return
	}
	d.note("msg-copy", "this kernel has no MSG_COPY (CONFIG_CHECKPOINT_RESTORE): a broker keeps the messages of level kernel in its memory too, "+
		"and sysv import receives before it hands over, by its journal")
}

// examineUnits looks for systemd units that run a broker and hide or remove its kernel queues.
func (d *doctor) examineUnits() {
	seen := make(map[string]bool)
	bad := 0
	for _, manager := range []string{"systemd/system", "systemd/user"} {
		for _, place := range systemdPlaces {
			paths, _ := filepath.Glob(filepath.Join(d.host, place, manager, "*.service"))
			for _, path := range paths {
				name := filepath.Join(manager, filepath.Base(path))
				if !seen[name] && strings.Contains(d.read(filepath.Join(place, name)), "postbus serve") {
					bad += d.examineUnit(name)
				}
				seen[name] = true
			}
		}
	}
	if bad == 0 {
		d.ok("units", "no systemd unit of a broker hides or removes its kernel queues")
	}
}

// unitDangers are the settings of a unit that kernel queues do not outlive (systemd.exec(5)).
var unitDangers = []struct{ name, what string }{
	{"PrivateIPC", "gives the broker kernel queues that nobody else sees and that end with it"},
	{"RemoveIPC", "removes the broker's kernel queues when it stops"},
	{"DynamicUser", "removes the broker's kernel queues when it stops, as it implies RemoveIPC=yes"},
}

func (d *doctor) examineUnit(name string) (bad int) {
	values := make(map[string]bool)
	for _, path := range d.configFiles(name) {
		for line := range strings.Lines(d.read(path)) {
			setting, v, _ := strings.Cut(strings.TrimSpace(line), "=")
			if b, known := parseBool(strings.TrimSpace(v)); known {
				values[strings.TrimSpace(setting)] = b
			}
		}
	}
	for _, danger := range unitDangers {
		if values[danger.name] {
			bad++
			unit := filepath.Base(name)
			d.attention("units", "systemctl edit "+unit+", and set "+danger.name+"=no under [Service]",
				"%s=yes in unit %s %s", danger.name, unit, danger.what)
		}
	}
	return bad
}
