package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postbus/postbus/store"
)

// fakeHost returns a doctor who looks at a host that has these files; a content that
// begins with -> is a symbolic link.
func fakeHost(t *testing.T, files map[string]string) *doctor {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		err := os.WriteFile(path, []byte(content), 0o644)
		if target, ok := strings.CutPrefix(content, "->"); ok {
			os.Remove(path)
			err = os.Symlink(target, path)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return &doctor{host: root, dir: t.TempDir()}
}

const (
	login             = "/run/systemd/sessions/1"
	everybodyOrdinary = "# comment\nSYS_UID_MAX -1\n"
	unit              = "/etc/systemd/system/bus.service"
	serves            = "[Service]\nExecStart=/usr/bin/postbus serve\n"
)

// hostCases are hosts and what doctor says of them.
var hostCases = []struct {
	name    string
	files   map[string]string
	examine func(d *doctor)
	status  string
	words   string // of text or remedy
}{
	{"no proc", nil, (*doctor).examineLimits, statusOK, "takes 254 kernel queues of 16384 bytes, 4.0 MiB in all"},
	{"large limits", map[string]string{"/proc/sys/kernel/msgmnb": "1048576\n", "/proc/sys/kernel/msgmax": "65536\n"},
		(*doctor).examineLimits, statusOK, "254 MiB in all; its longer messages are cut at 65536 bytes"},
	{"small msgmnb", map[string]string{"/proc/sys/kernel/msgmnb": "4096\n"}, (*doctor).examineLimits, statusAttention, "kernel.msgmnb = 16384' >/etc/sysctl.d"},
	{"small msgmax", map[string]string{"/proc/sys/kernel/msgmax": "512\n"}, (*doctor).examineLimits, statusAttention, "less than Linux's 8192"},
	{"msgmax above msgmnb", map[string]string{"/proc/sys/kernel/msgmax": "100000\n"}, (*doctor).examineLimits, statusAttention, "kernel.msgmnb = 200000"},
	{"few queues", map[string]string{"/proc/sys/kernel/msgmni": "100\n"}, (*doctor).examineLimits, statusAttention, "0 of 100 kernel queues are in use"},

	{"no logind", nil, (*doctor).examineRemoveIPC, statusOK, "does not run here"},
	{"default", map[string]string{login: "", "/etc/login.defs": everybodyOrdinary}, (*doctor).examineRemoveIPC, statusAttention, "(RemoveIPC=yes, the default)"},
	{"system user", map[string]string{login: "", "/etc/login.defs": "SYS_UID_MAX 70000\n"}, (*doctor).examineRemoveIPC, statusOK, "is a system user, up to 70000"},
	{"off", map[string]string{login: "", "/etc/login.defs": everybodyOrdinary, "/etc/systemd/logind.conf": "[Login]\n#RemoveIPC=yes\nRemoveIPC=no\n"},
		(*doctor).examineRemoveIPC, statusOK, "RemoveIPC=no in /etc/systemd/logind.conf"},
	{"in another section", map[string]string{login: "", "/etc/login.defs": everybodyOrdinary, "/etc/systemd/logind.conf": "[Other]\nRemoveIPC=no\n"},
		(*doctor).examineRemoveIPC, statusAttention, "the default"},
	{"on again by a drop-in", map[string]string{login: "", "/etc/login.defs": everybodyOrdinary, "/etc/systemd/logind.conf": "[Login]\nRemoveIPC=no\n",
		"/run/systemd/logind.conf.d/50-x.conf": "[Login]\nRemoveIPC = on\n"}, (*doctor).examineRemoveIPC, statusAttention, "(RemoveIPC=yes, /run/systemd/logind.conf.d/50-x.conf)"},
	{"a drop-in hides one of the same name", map[string]string{login: "", "/etc/login.defs": everybodyOrdinary,
		"/etc/systemd/logind.conf.d/50-x.conf": "[Login]\nRemoveIPC=false\n", "/usr/lib/systemd/logind.conf.d/50-x.conf": "[Login]\nRemoveIPC=yes\n"},
		(*doctor).examineRemoveIPC, statusOK, "RemoveIPC=no in /etc"},

	{"no namespaces", nil, (*doctor).examineNamespace, statusNote, "no IPC namespaces"},
	{"own namespace", map[string]string{"/proc/self/ns/ipc": "->ipc:[5]", "/proc/1/ns/ipc": "->ipc:[4]"}, (*doctor).examineNamespace, statusAttention, "this is ipc:[5] and process 1's is ipc:[4]"},
	{"the host's", map[string]string{"/proc/self/ns/ipc": "->ipc:[4]", "/proc/1/ns/ipc": "->ipc:[4]"}, (*doctor).examineNamespace, statusOK, "as process 1's"},

	{"no MSG_COPY", nil, (*doctor).examineCopy, statusNote, "CONFIG_CHECKPOINT_RESTORE"},
	{"MSG_COPY", map[string]string{"/proc/sys/kernel/msg_next_id": "-1\n"}, (*doctor).examineCopy, statusOK, "has MSG_COPY"},

	{"no units", nil, (*doctor).examineUnits, statusOK, "no systemd unit"},
	{"good unit", map[string]string{unit: serves + "PrivateIPC=no\n"}, (*doctor).examineUnits, statusOK, "no systemd unit"},
	{"another's unit", map[string]string{"/etc/systemd/system/x.service": "[Service]\nExecStart=x\nPrivateIPC=yes\n"}, (*doctor).examineUnits, statusOK, "no systemd unit"},
	{"PrivateIPC", map[string]string{unit: serves + "PrivateIPC=yes\n"}, (*doctor).examineUnits, statusAttention, "systemctl edit bus.service, and set PrivateIPC=no"},
	{"by a drop-in", map[string]string{unit: serves, "/run/systemd/system/bus.service.d/a.conf": "[Service]\nDynamicUser=1\n"},
		(*doctor).examineUnits, statusAttention, "DynamicUser=yes in unit bus.service removes"},
	{"mended by a drop-in", map[string]string{unit: serves + "RemoveIPC=yes\n", "/etc/systemd/system/bus.service.d/a.conf": "RemoveIPC=no\n"},
		(*doctor).examineUnits, statusOK, "no systemd unit"},
	{"a vendor's unit that is hidden", map[string]string{unit: serves, "/usr/lib/systemd/system/bus.service": serves + "RemoveIPC=yes\n"},
		(*doctor).examineUnits, statusOK, "no systemd unit"},
	{"a user's unit", map[string]string{"/usr/lib/systemd/user/bus.service": serves + "RemoveIPC=yes\n"}, (*doctor).examineUnits, statusAttention, "RemoveIPC=yes in unit bus.service"},
}

func TestSysVDoctorHost(t *testing.T) {
	for _, test := range hostCases {
		t.Run(test.name, func(t *testing.T) {
			d := fakeHost(t, test.files)
			test.examine(d)
			for _, f := range d.findings {
				if f.Status == test.status && strings.Contains(f.Text+"\n"+f.Remedy, test.words) && (f.Remedy != "") == (f.Status == statusAttention) {
					return
				}
			}
			t.Errorf("%+v, want %s: %q", d.findings, test.status, test.words)
		})
	}
}

// ill runs doctor, who must find something, and returns what it prints.
func ill(t *testing.T, dir string, flags ...string) (stderr, out string) {
	t.Helper()
	cmd := program(t, append([]string{"sysv", "doctor", "--address", dir}, flags...)...)
	var stdout strings.Builder
	cmd.Stdout = &stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return fails(t, cmd, 1), stdout.String()
}

// TestSysVOrphans makes an orphan: the key file of a killed broker forgets its segment.
func TestSysVOrphans(t *testing.T) {
	dir := busDir(t)
	broker := serve(t, dir)
	run(t, dir, "queue", "create", "--level", "kernel", "kept")
	run(t, dir, "push", "kept", "one")
	broker.Process.Kill()
	broker.Wait()
	key := filepath.Join(dir, "state", "kept.key")
	text, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	forgot := strings.Replace(string(text), " live    \n", " free    \n", 1)
	if forgot == string(text) {
		t.Fatalf("no live segment in\n%s", text)
	}
	if err := os.WriteFile(key, []byte(forgot), 0o600); err != nil { // in place: the inode makes the key
		t.Fatal(err)
	}
	if ls := run(t, dir, "sysv", "ls"); !strings.Contains(ls, " kept/1 orphan\n") {
		t.Errorf("ls:\n%s", ls)
	}
	stderr, out := ill(t, dir)
	if !strings.Contains(stderr, "need") || !strings.Contains(out, "has the key of kept/1, 0x01") || !strings.Contains(out, "remedy: postbus sysv rm-orphans --state "+dir) {
		t.Errorf("doctor: %s%s", out, stderr)
	}
	if out := run(t, dir, "sysv", "rm-orphans", "--json"); !strings.Contains(out, `"queue":"kept","segment":1,"removed":true,"records":1}`) {
		t.Errorf("rm-orphans: %s", out)
	}
	if ls := run(t, dir, "sysv", "ls"); strings.Contains(ls, "kept/1") {
		t.Errorf("ls after rm-orphans:\n%s", ls)
	}

	// One that proves nothing stays.
	k, err := store.Ftok(key, 3)
	if err != nil {
		t.Fatal(err)
	}
	stranger, made, err := store.MakeForeign(k, 0o600)
	if err != nil || !made {
		t.Fatalf("%v, made %v", err, made)
	}
	t.Cleanup(func() { stranger.Remove() })
	stderr, out = ill(t, dir, "--fix-orphans")
	if !strings.Contains(stderr, "1 kernel queue left: not proved to be ours") || !strings.Contains(out, "it is empty; if no program needs it: ipcrm -q") {
		t.Errorf("doctor --fix-orphans: %s%s", out, stderr)
	}

	// The broker's own that somebody has removed.
	if err := os.WriteFile(key, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if stderr, out = ill(t, dir); !strings.Contains(out, "kept: 1 of its 1 kernel queues were removed by somebody else") {
		t.Errorf("doctor: %s%s", out, stderr)
	}
}

func TestSysVDoctorFiles(t *testing.T) {
	boot, ipc, err := store.SysVHost()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, from, to string
		words          string
	}{
		{"another boot", boot, "00000000-0000-0000-0000-000000000000", "had messages in kernel queues before this host was started (their number is not known)"},
		{"another namespace", " ipcns 0x", " ipcns 0x1", "has its messages in IPC namespace ipc:["},
		{"scribble", "name kept", "name else", "can be read: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			s, err := store.OpenSysV(dir, "kept", nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.Close(); removeKernelQueues(dir) })
			if _, err := s.Append([]store.Entry{{Kind: store.Message, Seq: 1, Data: []byte("x")}}); err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(dir + "/kept.key")
			if err != nil {
				t.Fatal(err)
			}
			changed := strings.Replace(string(text), test.from, test.to, 1)
			if test.name == "another namespace" {
				changed = strings.Replace(string(text), test.from+"0", test.to, 1)
			}
			copied := t.TempDir()
			if err := os.WriteFile(copied+"/kept.key", []byte(changed), 0o600); err != nil || changed == string(text) {
				t.Fatalf("%v, for namespace %d:\n%s", err, ipc, changed)
			}
			d := fakeHost(t, nil)
			d.state.dir = copied
			if err := d.examine(); err != nil {
				t.Fatal(err)
			}
			for _, f := range d.findings {
				if f.Check == "queues" && f.Status == statusAttention && strings.Contains(f.Text, test.words) {
					return
				}
			}
			t.Errorf("%+v, want %q", d.findings, test.words)
		})
	}
}

func TestSysVParse(t *testing.T) {
	for s, want := range map[string]int{"1": 1, "255": 255, "0x41": 0x41, "A": 'A', "'7'": '7', "7": 7, "257": 257, "?": '?'} {
		if got, err := parseProj(s); err != nil || got != want {
			t.Errorf("--proj %s: %d, %v", s, got, err)
		}
	}
	for s, want := range map[string]store.Key{"0x5105": 0x5105, "20741": 0x5105, "-2": -2, "0xfffffffe": -2, "4294967294": -2} {
		if got, err := parseKey(s); err != nil || got != want {
			t.Errorf("--key %s: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "0", "256", "ab", "0x100", "x1"} {
		if _, err := parseProj(s); err == nil {
			t.Errorf("--proj %q is accepted", s)
		}
	}
	for _, s := range []string{"", "0", "-1", "0xffffffff", "4294967296", "-2147483649", "q"} {
		if _, err := parseKey(s); err == nil {
			t.Errorf("--key %q is accepted", s)
		}
	}
}
