//! Calls as Yuan 3.0 writes them: one list of Python's with all calls, `[f(a="x", b=1), g()]`, which is the whole answer. The authors' template shows the
//! arguments as JSON, and so they are written here.

use serde_json::{Map, Value, json};
use yuan::grammar::Grammar;

use super::{Calls, Rules, Tool, quote};

impl Calls {
    /// The rules of answers, which are `form` where they are no calls and that is asked for.
    ///
    /// # Errors
    /// The form is a grammar of its own.
    pub fn python(&self, form: Option<&Grammar>) -> Result<Rules, String> {
        let mut others = String::new();
        let text = match form {
            _ if self.needed => String::new(),
            Some(form) => {
                others.push_str(&format!("text: {}\n", Rules::of(form)?.answer));
                "text | ".to_owned()
            }
            None => {
                // What begins like a list of calls is one.
                let names: Vec<_> = self.tools.iter().map(|tool| tool.name.replace('.', "\\.")).collect();
                let begun = format!("\\[({})\\((.|\\n)*", names.join("|"));
                others.push_str(&format!("text: TEXT\nTEXT: /(.|\\n)*/ & ~/{begun}/\n"));
                "text | ".to_owned()
            }
        };
        // The first call and what opens the list are one word of the grammar: text can begin with either.
        let any = |before: &str| {
            let calls = self.tools.iter().zip(0..).map(|(tool, i)| {
                let head = quote(&format!("{before}{}(", tool.name));
                format!("{head} f{i}_first \")\"")
            });
            calls.collect::<Vec<_>>().join(" | ")
        };
        others.push_str(&format!("call: {}\n", any("[")));
        let more = if self.several { " more*" } else { "" };
        if self.several {
            others.push_str(&format!("more: {}\n", any(", ")));
        }
        for (tool, i) in self.tools.iter().zip(0..) {
            others.push_str(&arguments(&format!("f{i}"), tool));
        }
        Ok(Rules { answer: format!("{text}call{more} \"]\""), others })
    }
}

/// The rules of a function's arguments: those that its schema names, in its order, each once, and all that it needs. Where it names none, any.
fn arguments(rule: &str, tool: &Tool) -> String {
    let parameters = &tool.parameters;
    let none = Map::new();
    let named = parameters["properties"].as_object().unwrap_or(&none);
    if named.is_empty()
        && parameters["additionalProperties"] != false
        && parameters.get("properties").is_none()
    {
        let any = "/[A-Za-z_][A-Za-z0-9_]*=/ %json {}";
        return format!("{rule}_first: ({any} (\", \" {any})*)?\n");
    }
    let needed = |name: &str| {
        parameters["required"].as_array().is_some_and(|list| list.iter().any(|needed| needed == name))
    };
    let mut rules = String::new();
    for (i, (name, schema)) in named.iter().enumerate() {
        let argument =
            format!("{} %json {}", quote(&format!("{name}=")), Grammar::spaced(&within(parameters, schema)));
        let (place, next) = (at(i), at(i + 1));
        rules.push_str(&format!("{rule}_{i}: {argument}\n"));
        for (state, before) in [("first", ""), ("more", "\", \" ")] {
            let skipped = if needed(name) { String::new() } else { format!(" | {rule}_{state}{next}") };
            rules
                .push_str(&format!("{rule}_{state}{place}: {before}{rule}_{i} {rule}_more{next}{skipped}\n"));
        }
    }
    let end = at(named.len());
    rules.push_str(&format!("{rule}_more{end}: \"\"\n"));
    if named.is_empty() {
        rules.push_str(&format!("{rule}_first: \"\"\n"));
    } else {
        rules.push_str(&format!("{rule}_first{end}: \"\"\n"));
    }
    rules
}

/// The name of a place among the arguments; the first has none.
fn at(place: usize) -> String {
    if place == 0 { String::new() } else { format!("_{place}") }
}

/// The schema of an argument, with what it may refer to.
fn within(parameters: &Value, schema: &Value) -> Value {
    let mut schema = match schema {
        Value::Bool(true) => json!({}),
        other => other.clone(),
    };
    if let Some(fields) = schema.as_object_mut() {
        for name in ["$defs", "definitions", "x-guidance"] {
            if let Some(shared) = parameters.get(name) {
                fields.entry(name).or_insert_with(|| shared.clone());
            }
        }
    }
    schema
}

/// The first call of a text that stands behind `[`, or behind a call: its name, its arguments, and how long all of it is. `None` while it is not whole.
pub fn read(text: &str) -> Option<(String, Map<String, Value>, usize)> {
    let open = text.find('(')?;
    let name = text[..open].trim_start_matches([',', ' ']);
    let (mut arguments, mut at) = (Map::new(), open + 1);
    loop {
        let rest = &text[at..];
        let trimmed = rest.trim_start_matches([',', ' ']);
        at += rest.len() - trimmed.len();
        if trimmed.starts_with(')') {
            return Some((name.to_owned(), arguments, at + 1));
        }
        let equals = trimmed.find('=')?;
        let key = trimmed[..equals].to_owned();
        let value = &trimmed[equals + 1..];
        let end = value_end(value)?;
        at += equals + 1 + end;
        let value = serde_json::from_str(&value[..end]).ok()?;
        arguments.insert(key, value);
    }
}

/// Where a value ends: before a comma or a bracket of the call.
fn value_end(text: &str) -> Option<usize> {
    let (mut depth, mut string, mut escaped) = (0_usize, false, false);
    for (i, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if string => escaped = true,
            b'"' => string = !string,
            _ if string => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' | b')' if depth == 0 => return Some(i),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{super::tests::accepted, *};

    fn calls(needed: bool, several: bool) -> Calls {
        let parameters = json!({
            "type": "object", "required": ["city"],
            "properties": { "days": { "type": "integer" }, "city": { "type": "string" }, "list": { "type": "array" } },
        });
        let tools = vec![
            Tool::new("weather", None, Some(parameters), true).unwrap(),
            Tool::new("f.g", None, Some(json!({ "type": "object", "properties": {} })), true).unwrap(),
            Tool::new("any", None, Some(json!({ "type": "object" })), true).unwrap(),
        ];
        Calls { tools, needed, several }
    }

    #[test]
    fn an_answer_is_text_or_one_list_of_calls() {
        let of = |calls: Calls, text: &str| accepted(&calls.python(None).unwrap().grammar(), text);
        let whole = |text: &str| (text.len(), true);
        let call = "[weather(city=\"春\\\"\")]";
        let all = "[weather(days=-3, city=\"春\", list=[1, {\"a\": null}]), f.g(), any(x=1.5, y=true)]";
        for text in [
            "So, [1] and weather(city)",
            "[weather is fine]",
            "[",
            "[1]",
            "[any",
            call,
            all,
            "[f.g()]",
            "[any()]",
        ] {
            assert_eq!(of(calls(false, true), text), whole(text), "{text}");
        }
        assert_eq!(of(calls(true, true), all), whole(all));
        assert_eq!(of(calls(true, false), call), whole(call));
        assert_eq!(of(calls(true, true), "So").0, 0);
        assert_eq!(of(calls(true, false), all).0, all.find(", f.g").unwrap());
        for (text, good) in [
            ("[weather()]", "[weather("),
            ("[weather(city=1)]", "[weather(city="),
            ("[weather(days=1)]", "[weather(days=1"),
            ("[weather(list=[], city=\"\")]", "[weather("),
            ("[weather(city=\"\")] x", "[weather(city=\"\")]"),
            ("[f.g(a=1)]", "[f.g("),
            ("[none()]", "["),
        ] {
            assert_eq!(of(calls(true, true), text), (good.len(), false), "{text}");
        }
    }

    #[test]
    fn calls_are_read_once_they_are_whole() {
        let text = "weather(days=-3, city=\"a)\\\", \", list=[1, {\"a\": null}]), f.g()]";
        let (name, arguments, len) = read(text).unwrap();
        assert_eq!((&*name, &text[len..]), ("weather", ", f.g()]"));
        assert_eq!(
            Value::from(arguments),
            json!({ "days": -3, "city": "a)\", ", "list": [1, { "a": null }] })
        );
        assert_eq!(read(&text[len..]).unwrap(), ("f.g".into(), Map::new(), ", f.g()".len()));
        assert!((0..len).filter(|end| text.is_char_boundary(*end)).all(|end| read(&text[..end]).is_none()));
    }
}
