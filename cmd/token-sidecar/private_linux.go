package main

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// forbidDumps keeps other processes of the same user from this one's memory
// and environment, and the kernel from writing it to a core file (prctl(2)).
func forbidDumps() error {
	if _, _, errno := syscall.Syscall(syscall.SYS_PRCTL, syscall.PR_SET_DUMPABLE, 0, 0); errno != 0 {
		return fmt.Errorf("prctl PR_SET_DUMPABLE: %w", errno)
	}
	return nil
}

// eraseFromEnvironment overwrites the values of variables where the kernel put
// them when this process began, which no unsetenv reaches: /proc/PID/environ
// shows that place to root, and to the agents that collect what it finds.
// What os.Getenv returns is a copy made before, and stays. Call it before
// forbidDumps, after which /proc/self/mem can be opened by root alone.
func eraseFromEnvironment(names []string) error {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return err
	}
	start, end, err := environmentRange(string(stat))
	if err != nil {
		return err
	}
	memory, err := os.OpenFile("/proc/self/mem", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer memory.Close()
	block := make([]byte, end-start)
	if _, err := memory.ReadAt(block, start); err != nil {
		return err
	}
	for entry := range bytes.SplitSeq(block, []byte{0}) {
		if name, value, _ := bytes.Cut(entry, []byte("=")); slices.Contains(names, string(name)) {
			clear(value)
		}
	}
	_, err = memory.WriteAt(block, start)
	return err
}

// environmentRange finds env_start and env_end in what proc_pid_stat(5) describes.
func environmentRange(stat string) (start, end int64, err error) {
	const first, envStart, envEnd = 3, 50, 51 // after the name, which may hold anything
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) <= envEnd-first {
		return 0, 0, fmt.Errorf("/proc/self/stat has %d fields", len(fields)+first-1)
	}
	start, startErr := strconv.ParseInt(fields[envStart-first], 10, 64)
	end, endErr := strconv.ParseInt(fields[envEnd-first], 10, 64)
	if startErr != nil || endErr != nil || start <= 0 || end < start || end-start > 1<<24 {
		return 0, 0, fmt.Errorf("/proc/self/stat tells no place of the environment")
	}
	return start, end, nil
}
