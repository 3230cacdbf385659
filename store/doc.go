// Package store keeps the entries of queues: messages, what became of them, marks
// and settings. It knows nothing of frames or brokers.
//
// A [Store] keeps one queue. There are three kinds, by what they survive:
//
//   - [NewMemory] keeps entries in the process and survives nothing.
//   - [OpenSysV] keeps messages in System V message queues, which survive kill -9 of
//     the process and not a reboot.
//   - [OpenDisk] keeps entries in files and survives loss of power.
//
// Package storetest is their contract as tests.
//
//	s, err := store.OpenSysV("/var/lib/postbus", "jobs", nil)
//	high := s.Stats().High
//	n, err := s.Append([]store.Entry{{Kind: store.Message, Seq: high + 1, Data: body}})
//	err = s.Sync() // now it outlives this process
//	err = s.Remove([]uint64{high + 1})
//
// [Ftok] computes the key of a file as the C library's ftok(3) does.
package store
