package profiles

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"github.com/alisw/kiln/internal/lazyregexp"
)

// Package fmt reports what doesn't fit by writing it into the result, such as
// %!d(string=x): on a host that would be a file's content. So templates have
// functions of these names that fail instead.

// maxWidth bounds how wide printf makes a value, in characters.
const maxWidth = 4096

var (
	directive = lazyregexp.New(`%[-+# 0]*[0-9.*\[\]]*`)
	digits    = lazyregexp.New(`[0-9]+`)
)

// printf is fmt.Sprintf for formats and arguments that fit each other.
func printf(format string, args ...any) (string, error) {
	plain := strings.ReplaceAll(format, "%%", "")
	for _, d := range directive().FindAllString(plain, -1) {
		if strings.Contains(d, "*") {
			return "", &templateError{fmt.Sprintf("the format %q takes a width from an argument", format), "write the number in its place"}
		}
		for _, n := range digits().FindAllString(d, -1) {
			if width, err := strconv.Atoi(n); err != nil || width > maxWidth {
				return "", &templateError{fmt.Sprintf("the format %q makes a value %s characters wide", format, n), fmt.Sprintf("write %d at most", maxWidth)}
			}
		}
	}
	blank := make([]any, len(args))
	for i, a := range args {
		if a == nil {
			return "", errNothing()
		}
		blank[i] = blanked(reflect.ValueOf(a)).Interface()
	}
	// With texts left out, only fmt itself writes this.
	if dry := fmt.Sprintf(plain, blank...); strings.Contains(dry, "%!") {
		return "", &templateError{fmt.Sprintf("the format %q doesn't fit what it is given", format), mismatch(dry)}
	}
	return fmt.Sprintf(format, args...), nil
}

// mismatch is the advice for what fmt wrote of a format and its arguments.
func mismatch(dry string) string {
	switch {
	case strings.Contains(dry, "(MISSING)"), strings.Contains(dry, "(BADINDEX)"):
		return "give an argument for each %, and write %% for one that is meant"
	case strings.Contains(dry, "%!(EXTRA"):
		return "write a % for each argument: %v takes any"
	case strings.Contains(dry, "(NOVERB)"):
		return "write %% for a % that is meant"
	}
	return "%v takes any value, %d a whole number, %s a text"
}

// blanked is v with its texts left out.
func blanked(v reflect.Value) reflect.Value {
	switch v.Kind() {
	case reflect.String, reflect.Struct:
		return reflect.Zero(v.Type())
	case reflect.Interface:
		if !v.IsNil() {
			out := reflect.New(v.Type()).Elem()
			out.Set(blanked(v.Elem()))
			return out
		}
	case reflect.Slice:
		out := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
		for i := range v.Len() {
			out.Index(i).Set(blanked(v.Index(i)))
		}
		return out
	case reflect.Map:
		// Keys are shown as values are, and no two of them alike are needed.
		out := reflect.MakeMap(v.Type())
		for it := v.MapRange(); it.Next(); {
			out.SetMapIndex(blanked(it.Key()), blanked(it.Value()))
		}
		return out
	}
	return v
}

// printed is what print and println write, where there is something to write.
func printed(print func(...any) string, args []any) (string, error) {
	for _, a := range args {
		if a == nil {
			return "", errNothing()
		}
	}
	return print(args...), nil
}

func errNothing() error {
	return &templateError{"there is no value to print", "give it a default, or ask for it with if or with"}
}
