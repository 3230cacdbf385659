package store_test
import ("testing";"math/rand/v2";"github.com/postbus/postbus/store";"fmt";"os")
func TestZDebug(t *testing.T) {
	if os.Getenv("ZD")=="" { t.Skip() }
	dir := onTmpfs(t); if dir=="" {return}
	opts := store.WithSegments(store.DiskOptions{MaxBytes: 512 << 10}, 16<<10, 64<<10)
	for seed := range uint64(20) { for _, most := range []int{12000, 50_000, 120_000} {
		t.Run(fmt.Sprint(seed,"/",most), func(t *testing.T){
		f := &full{t: t, rng: rand.New(rand.NewPCG(seed, uint64(most))), dir: dir, opts: opts, most: most}
		defer func(){ if t.Failed() { t.Log(f.d.Debug()) }; f.d.Close(); store.DeleteDisk(dir,"q") }()
		f.run(600) })
	}}
}
