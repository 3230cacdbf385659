package postbus_test

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/postbus/postbus"

// allowed is which of our packages each may import, as docs/ARCHITECTURE.md draws
// it, and which modules of others. What only the command needs stays under cmd/.
var allowed = map[string]struct{ ours, others []string }{
	"":                           {},
	"wire":                       {nil, []string{"github.com/vmihailenco/msgpack/v5", "golang.org/x/sys/unix"}},
	"store":                      {nil, []string{"golang.org/x/sys/unix"}},
	"store/storetest":            {[]string{"store"}, []string{"*"}},
	"broker":                     {[]string{"wire", "store", "broker/internal/queue"}, []string{"github.com/hashicorp/go-hclog", "github.com/vmihailenco/msgpack/v5", "golang.org/x/sys/unix"}},
	"broker/internal/queue":      {nil, nil},
	"broker/brokertest":          {[]string{"broker", "wire"}, nil},
	"client":                     {[]string{"wire"}, []string{"github.com/hashicorp/go-hclog", "golang.org/x/sys/unix"}},
	"cmd/postbus":                {[]string{"broker", "client", "store", "wire", "cmd/postbus/internal/bench"}, []string{"*"}},
	"cmd/postbus/internal/bench": {[]string{"broker", "client", "wire"}, []string{"*"}},
	"examples/pubsub":            {[]string{"client"}, nil},
	"examples/workqueue":         {[]string{"client"}, nil},
}

func TestImportArrows(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for line := range strings.Lines(string(out)) {
		pkg, imports, _ := strings.Cut(strings.TrimSpace(line), " ")
		pkg = strings.TrimPrefix(strings.TrimPrefix(pkg, module), "/")
		rule, ok := allowed[pkg]
		if !ok {
			if imports != "" { // a folder of tests only has none
				t.Errorf("package %q is not drawn: add it to docs/ARCHITECTURE.md and to this test", pkg)
			}
			continue
		}
		seen++
		for imported := range strings.FieldsSeq(imports) {
			if ours, ok := strings.CutPrefix(imported, module+"/"); ok {
				if !slices.Contains(rule.ours, ours) {
					t.Errorf("%s imports %s: there is no such arrow", pkg, ours)
				}
			} else if strings.Contains(imported, ".") && !slices.Contains(rule.others, imported) && !slices.Contains(rule.others, "*") {
				t.Errorf("%s imports %s: it is not among the libraries it may use", pkg, imported)
			}
		}
	}
	if seen != len(allowed) {
		t.Errorf("%d of the %d packages drawn are there", seen, len(allowed))
	}
}

func TestTopFolders(t *testing.T) {
	known := strings.Fields("broker client wire store cmd examples docs .ci .git")
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() && !slices.Contains(known, e.Name()) && e.Name() != "bin" {
			t.Errorf("folder %s is new at the top: say why in docs/decisions/, and add it to this test", e.Name())
		}
	}
}

// The program in the README is the one in examples/pubsub.
func TestReadmeShowsTheExample(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile("examples/pubsub/main.go")
	if err != nil {
		t.Fatal(err)
	}
	_, body, _ := strings.Cut(string(program), "func main() {")
	if !strings.Contains(string(readme), "func main() {"+body) {
		t.Error("README.md shows another program than examples/pubsub/main.go")
	}
}
