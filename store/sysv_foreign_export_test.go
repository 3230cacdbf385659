package store

// SetLimit sets msg_qbytes, for Msgctl.
func (ds *msqidDS) SetLimit(bytes int) { ds.qbytes = uint64(bytes) }
