#!/bin/sh
# Runs every fuzz target of the repository for the time given: fuzz.sh 10s
set -eu

time=${1:?usage: fuzz.sh TIME, such as 10s}
cd "$(dirname "$0")/.."

grep -rln '^func Fuzz' --include='*_test.go' . | sort | while IFS= read -r file; do
	sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$file" | while IFS= read -r target; do
		echo "== $(dirname "$file") $target"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$(dirname "$file")" </dev/null
	done
done
