// Command schemas writes strict JSON schemas, as kubeconform reads them, of the
// OpenAPI documents (*.json) and CustomResourceDefinitions (*.yaml) that it is given.
//
//	schemas FOLDER FILE...
package main

import (
	"encoding/json"
	"log"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

type object = map[string]any

func main() {
	for _, file := range os.Args[2:] {
		content, err := os.ReadFile(file)
		check(err)
		if filepath.Ext(file) == ".yaml" {
			ofDefinition(os.Args[1], content)
		} else {
			ofDocument(os.Args[1], content)
		}
	}
}

func ofDocument(folder string, content []byte) {
	var document struct {
		Components struct {
			Schemas map[string]object `json:"schemas"`
		}
	}
	check(json.Unmarshal(content, &document))
	for _, schema := range document.Components.Schemas {
		makeStrict(schema)
	}
	for name, schema := range document.Components.Schemas {
		// Several kinds mean one that every group has, as DeleteOptions.
		if kinds, _ := schema["x-kubernetes-group-version-kind"].([]any); len(kinds) == 1 {
			kind := kinds[0].(object)
			write(folder, kind["group"].(string), kind["version"].(string), kind["kind"].(string), object{
				"$ref":       "#/components/schemas/" + name,
				"components": document.Components,
			})
		}
	}
}

func ofDefinition(folder string, content []byte) {
	var definition struct {
		Spec struct {
			Group    string
			Names    struct{ Kind string }
			Versions []struct {
				Name   string
				Schema struct{ OpenAPIV3Schema object }
			}
		}
	}
	check(yaml.Unmarshal(content, &definition))
	for _, version := range definition.Spec.Versions {
		makeStrict(version.Schema.OpenAPIV3Schema)
		write(folder, definition.Spec.Group, version.Name, definition.Spec.Names.Kind, version.Schema.OpenAPIV3Schema)
	}
}

// makeStrict refuses unknown fields, which the API server would drop or refuse.
func makeStrict(schema object) {
	delete(schema, "description")
	properties, _ := schema["properties"].(object)
	if properties != nil && schema["additionalProperties"] == nil && schema["x-kubernetes-preserve-unknown-fields"] != true {
		schema["additionalProperties"] = false
	}
	for _, property := range properties {
		makeStrict(property.(object))
	}
	for _, key := range []string{"items", "additionalProperties"} {
		if nested, ok := schema[key].(object); ok {
			makeStrict(nested)
		}
	}
}

// write names the file {{.ResourceKind}}{{.KindSuffix}}.json, in kubeconform's words.
func write(folder, group, version, kind string, schema object) {
	words := []string{kind}
	if group != "" {
		words = append(words, strings.Split(group, ".")[0])
	}
	content, err := json.Marshal(schema)
	check(err)
	name := strings.ToLower(strings.Join(append(words, version), "-")) + ".json"
	check(os.WriteFile(filepath.Join(folder, name), content, 0o644))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
