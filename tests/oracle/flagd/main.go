// Evaluates rules with flagd's own evaluator: one JSON line [rule, context] in, one line out: the result as JSON, or
// !message. See ../make_flagd_vectors.py.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"

	"github.com/diegoholiveira/jsonlogic/v3"
	"github.com/open-feature/flagd/core/pkg/evaluator"
	"github.com/open-feature/flagd/core/pkg/logger"
	"go.uber.org/zap"
)

func main() {
	log := logger.NewLogger(zap.NewNop(), false)
	strings := evaluator.NewStringComparisonEvaluator(log)
	jsonlogic.AddOperator(evaluator.FractionEvaluationName, evaluator.NewFractional(log).Evaluate)
	jsonlogic.AddOperator(evaluator.StartsWithEvaluationName, strings.StartsWithEvaluation)
	jsonlogic.AddOperator(evaluator.EndsWithEvaluationName, strings.EndsWithEvaluation)
	jsonlogic.AddOperator(evaluator.SemVerEvaluationName, evaluator.NewSemVerComparison(log).SemVerEvaluation)

	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<24)
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	for lines.Scan() {
		fmt.Fprintln(out, evaluate(lines.Bytes()))
	}
}

func evaluate(line []byte) string {
	var pair [2]json.RawMessage
	if err := json.Unmarshal(line, &pair); err != nil {
		return "!" + err.Error()
	}
	var result bytes.Buffer
	if err := jsonlogic.Apply(bytes.NewReader(pair[0]), bytes.NewReader(pair[1]), &result); err != nil {
		return "!" + err.Error()
	}
	return string(bytes.TrimSpace(result.Bytes()))
}
