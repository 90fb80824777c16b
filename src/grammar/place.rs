//! Where in a schema something stands.

use serde_json::Value;

/// Fields whose values are schemas by names that are not keywords.
const NAMED: [&str; 5] = ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas"];

/// The place of the first schema with this keyword, as a reference has it: `#/properties/a`.
pub(super) fn of_keyword(schema: &Value, keyword: &str) -> Option<String> {
    find(schema, keyword, "#", true)
}

fn find(value: &Value, keyword: &str, at: &str, is_schema: bool) -> Option<String> {
    match value {
        Value::Object(fields) if is_schema && fields.contains_key(keyword) => Some(at.to_owned()),
        Value::Object(fields) => fields.iter().find_map(|(name, value)| {
            // A constant is no schema, whatever it looks like.
            let constant = is_schema && ["const", "enum", "default", "examples"].contains(&name.as_str());
            let named = is_schema && NAMED.contains(&name.as_str());
            let at = format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
            (!constant).then(|| find(value, keyword, &at, !named)).flatten()
        }),
        Value::Array(list) => list
            .iter()
            .enumerate()
            .find_map(|(i, value)| find(value, keyword, &format!("{at}/{i}"), is_schema)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_keyword_is_found_where_it_is_one() {
        let schema = json!({
            "properties": { "not": { "const": { "not": 1 } }, "a/b": { "anyOf": [{}, { "items": { "not": {} } }] } },
        });
        assert_eq!(of_keyword(&schema, "not").as_deref(), Some("#/properties/a~1b/anyOf/1/items"));
        assert_eq!(of_keyword(&schema, "if"), None);
    }
}
