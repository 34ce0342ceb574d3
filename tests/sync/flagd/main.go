// Serves flag definition files as flagd does, without a port: one JSON line {"file": text} loads a file into a new
// store, one line {"key": …, "context": …} asks for a flag; each is answered with one line. See ../make_flagd_answers.py.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"os"

	"github.com/open-feature/flagd/core/pkg/evaluator"
	"github.com/open-feature/flagd/core/pkg/logger"
	"github.com/open-feature/flagd/core/pkg/store"
	"github.com/open-feature/flagd/core/pkg/sync"
	"go.uber.org/zap"
)

type request struct {
	File    *string        `json:"file"`
	Key     string         `json:"key"`
	Context map[string]any `json:"context"`
}

type answer struct {
	Value    any            `json:"value"`
	Variant  string         `json:"variant"`
	Reason   string         `json:"reason"`
	Metadata map[string]any `json:"metadata"`
	Error    string         `json:"error,omitempty"`
}

func main() {
	log := logger.NewLogger(zap.NewNop(), false)
	var flagd *evaluator.JSON
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<24)
	out := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		var asked request
		if err := json.Unmarshal(lines.Bytes(), &asked); err != nil {
			panic(err)
		}
		if asked.File != nil {
			flags, err := store.NewStore(log, []string{"file"})
			if err != nil {
				panic(err)
			}
			flagd = evaluator.NewJSON(log, flags)
			var loaded answer
			if err := flagd.SetState(sync.DataSync{FlagData: *asked.File, Source: "file"}); err != nil {
				loaded.Error = err.Error()
			}
			out.Encode(loaded)
			continue
		}
		value := flagd.ResolveAsAnyValue(context.Background(), "", asked.Key, asked.Context)
		given := answer{Value: value.Value, Variant: value.Variant, Reason: value.Reason, Metadata: value.Metadata}
		if value.Error != nil {
			given.Error = value.Error.Error()
		}
		out.Encode(given)
	}
}
