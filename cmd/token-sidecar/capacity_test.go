package main

import (
	"testing"
	"testing/fstest"
)

func TestCapacityIsWhatTheLimitsAllow(t *testing.T) {
	const none, mib = 0, 1 << 20
	for _, tt := range []struct {
		name        string
		asked       capacity
		memory      int64
		descriptors int
		want        capacity
	}{
		{"no limits", capacity{}, none, none, capacity{0, 0}},
		{"memory, of a container of 32 MiB", capacity{}, memoryForGo(32 * mib), none, capacity{100, 200}},
		{"memory, of a container of 64 MiB", capacity{}, memoryForGo(64 * mib), none, capacity{271, 542}},
		{"memory that is hardly enough", capacity{}, 3 * mib, none, capacity{1, 2}},
		{"descriptors", capacity{}, none, 128, capacity{32, 64}},
		{"descriptors, many", capacity{}, none, 1 << 20, capacity{349514, 699028}},
		{"descriptors that are hardly enough", capacity{}, none, 16, capacity{1, 2}},
		{"descriptors and connections asked for", capacity{connections: 80}, none, 128, capacity{32, 64}},
		{"both, memory is scarcer", capacity{}, memoryForGo(32 * mib), 1024, capacity{100, 200}},
		{"both, descriptors are scarcer", capacity{}, 200 * mib, 128, capacity{32, 64}},
		{"asked for more than memory allows", capacity{inFlight: 500}, memoryForGo(32 * mib), 20000, capacity{500, 1000}},
		{"asked for more than descriptors allow", capacity{500, 500}, none, 128, capacity{32, 64}},
		{"asked for less", capacity{10, 15}, 200 * mib, 1024, capacity{10, 15}},
		{"asked for few connections", capacity{connections: 15}, memoryForGo(32 * mib), none, capacity{100, 15}},
	} {
		if got := tt.asked.within(tt.memory, tt.descriptors); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestDescriptorLimit(t *testing.T) {
	for content, want := range map[string]int{
		"Limit                     Soft Limit           Hard Limit           Units     \n" +
			"Max processes             96500                96500                processes \n" +
			"Max open files            128                  1024                 files     \n": 128,
		"Max open files            unlimited            unlimited            files\n": 0,
		"Max open files":             0,
		"Max processes   1   1   \n": 0,
	} {
		root := fstest.MapFS{"proc/self/limits": {Data: []byte(content)}}
		if got := descriptorLimit(root); got != want {
			t.Errorf("%q: got %d, want %d", content, got, want)
		}
	}
	if got := descriptorLimit(fstest.MapFS{}); got != 0 {
		t.Errorf("without /proc: got %d", got)
	}
}
