//! What an answer has to be: the fields of a request that say it, and the jobs that do it.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use yuan::grammar::Grammar;

use crate::{problem::Problem, server::Loaded, work::Job};

/// OpenAI's field, and those of llama-server.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub struct Form {
    response_format: Option<Value>,
    json_schema: Option<Value>,
    grammar: Option<String>,
}

/// A grammar, and the field that it comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// What the answer has to be.
    pub grammar: Grammar,
    /// For messages.
    pub param: &'static str,
}

impl Form {
    /// What the answer has to be, if anything is said of it.
    ///
    /// # Errors
    /// A field that makes no sense, or several that say something else.
    pub fn grammar(&self) -> Result<Option<Asked>, Problem> {
        let format = self.response_format.as_ref().map(|format| openai("response_format", format));
        let format = format.transpose()?.flatten().map(|asked| asked.grammar);
        let schema = self.json_schema.clone().map(Grammar::JsonSchema);
        let lark = self.grammar.clone().filter(|text| !text.trim().is_empty()).map(Grammar::Lark);
        let all = [(format, "response_format"), (schema, "json_schema"), (lark, "grammar")];
        let mut all = all.into_iter().filter_map(|(grammar, param)| Some(Asked { grammar: grammar?, param }));
        let first = all.next();
        match all.next() {
            Some(Asked { param, .. }) => Err(Problem::field(
                param,
                format!("{param} and another field say what the answer has to be; give one"),
            )),
            None => Ok(first),
        }
    }
}

/// `{"type": "text" | "json_object" | "json_schema", …}`, which stands in the field `param`. The responses of OpenAI and clients of llama-server have the
/// schema directly in it, those with `json_object`, too.
///
/// # Errors
/// It makes no sense.
pub fn openai(param: &'static str, format: &Value) -> Result<Option<Asked>, Problem> {
    let schema = format.get("schema").filter(|schema| !schema.is_null());
    let asked = |grammar| Ok(Some(Asked { grammar, param }));
    match format["type"].as_str() {
        Some("text") => Ok(None),
        Some("json_object") => asked(schema.map_or(Grammar::JsonObject, |s| Grammar::JsonSchema(s.clone()))),
        Some("json_schema") => {
            let named = &format["json_schema"];
            let schema = named.get("schema").or(schema).cloned().ok_or_else(|| {
                Problem::field(
                    param,
                    "there is no schema; give it as the field schema beside the schema's name",
                )
            })?;
            let is_strict = named["strict"] != false && format["strict"] != false;
            asked(Grammar::JsonSchema(if is_strict { schema } else { lenient(schema) }))
        }
        _ => Err(Problem::field(
            param,
            format!("{param} has the type {}; give text, json_object or json_schema", format["type"]),
        )),
    }
}

/// Ollama's `format`: `"json"` or a schema.
///
/// # Errors
/// It is neither.
pub fn ollama(format: Option<&Value>) -> Result<Option<Asked>, Problem> {
    let asked = |grammar| Ok(Some(Asked { grammar, param: "format" }));
    match format {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(name)) if name.is_empty() => Ok(None),
        Some(Value::String(name)) if name == "json" => asked(Grammar::JsonObject),
        Some(schema @ Value::Object(_)) => asked(Grammar::JsonSchema(schema.clone())),
        Some(other) => {
            let message = format!("format is {other}; give \"json\" or a JSON schema");
            Err(Problem::field("format", message))
        }
    }
}

/// A schema of which what cannot be enforced is left to the model: so `"strict": false` says.
pub fn lenient(mut schema: Value) -> Value {
    if let Some(fields) = schema.as_object_mut() {
        fields.entry("x-guidance").or_insert_with(|| json!({ "lenient": true }));
    }
    schema
}

/// Makes all jobs answer with that.
///
/// # Errors
/// The grammar cannot be used, and why.
pub fn constrain(jobs: &mut [Job], model: &Loaded, asked: Option<&Asked>) -> Result<(), Problem> {
    let Some(Asked { grammar, param }) = asked else { return Ok(()) };
    let made = tokio::task::block_in_place(|| model.served.engine.constraint(grammar));
    let constraint = made.map_err(|e| Problem::field(param, e.to_string()))?;
    jobs.iter_mut().for_each(|job| job.limits.constraint = Some(constraint.clone()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: Value) -> Result<Option<Grammar>, &'static str> {
        let form: Form = serde_json::from_value(value).unwrap();
        form.grammar().map(|asked| asked.map(|a| a.grammar)).map_err(|p| p.param.unwrap())
    }

    #[test]
    fn clients_say_it_in_several_ways() {
        let schema = json!({ "type": "integer" });
        let wanted = Ok(Some(Grammar::JsonSchema(schema.clone())));
        for form in [
            json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "n", "schema": schema, "strict": true } } }),
            json!({ "response_format": { "type": "json_schema", "schema": schema } }),
            json!({ "response_format": { "type": "json_object", "schema": schema } }),
            json!({ "json_schema": schema, "grammar": "" }),
        ] {
            assert_eq!(of(form.clone()), wanted, "{form}");
        }
        assert_eq!(
            of(json!({ "response_format": { "type": "json_object" } })),
            Ok(Some(Grammar::JsonObject))
        );
        assert_eq!(of(json!({ "grammar": "start: \"a\"" })), Ok(Some(Grammar::Lark("start: \"a\"".into()))));
        for nothing in
            [json!({}), json!({ "response_format": null }), json!({ "response_format": { "type": "text" } })]
        {
            assert_eq!(of(nothing), Ok(None));
        }
        let loose = json!({ "response_format": { "type": "json_schema", "json_schema": { "schema": {}, "strict": false } } });
        assert_eq!(of(loose), Ok(Some(Grammar::JsonSchema(json!({ "x-guidance": { "lenient": true } })))));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for format in [json!({ "type": "xml" }), json!("json"), json!({ "type": "json_schema" }), json!({})] {
            assert_eq!(of(json!({ "response_format": format })), Err("response_format"), "{format}");
        }
        let both = json!({ "response_format": { "type": "json_object" }, "grammar": "start: \"a\"" });
        assert_eq!(of(both), Err("grammar"));
    }
}
