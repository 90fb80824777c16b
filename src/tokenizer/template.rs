//! Chat templates in Jinja, with what the templates of Hugging Face models use beside it.

use minijinja::{
    Environment, Error, ErrorKind, State, Value, context,
    syntax::SyntaxConfig,
    value::{ValueKind, from_args},
};

use super::Message;

/// Steps that a template may take, beside those that its messages need: a template from a file must not run without end.
const FUEL: u64 = 1_000_000;

/// The text that `template` makes of these messages and marks (`eos_token` and so on).
pub(super) fn render(
    template: &str,
    messages: &[Message],
    add_generation_prompt: bool,
    marks: &[(&'static str, &str)],
) -> Result<String, Error> {
    let mut environment = Environment::new();
    // As transformers sets Jinja up.
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.set_unknown_method_callback(python_method);
    // One unit pays for one instruction or for 64 bytes: a template can go over the messages dozens of times.
    let bytes: usize = messages.iter().map(|m| m.role.len() + m.content.len()).sum();
    environment.set_fuel(Some(FUEL.saturating_add(bytes as u64)));
    for (name, text) in marks {
        environment.add_global(*name, *text);
    }
    let messages: Vec<Value> = messages
        .iter()
        .map(|m| context! { role => m.role.as_str(), content => m.content.as_str() })
        .collect();
    // transformers passes `tools` and `documents` always, and templates ask whether they are none.
    let variables = context! { messages, add_generation_prompt, tools => (), documents => () };
    environment.render_str(template, variables)
}

/// Methods of Python's strings and dictionaries that templates call.
fn python_method(
    state: &mut State,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    if value.kind() == ValueKind::Map && method == "get" {
        let (key, default): (&Value, Option<Value>) = from_args(arguments)?;
        let found = value.get_item(key)?;
        return Ok(if found.is_undefined() { default.unwrap_or_else(|| ().into()) } else { found });
    }
    let Some(text) = value.as_str() else {
        return Err(ErrorKind::UnknownMethod.into());
    };
    let strip = |start: bool, end: bool| -> Result<Value, Error> {
        let (set,): (Option<&str>,) = from_args(arguments)?;
        let stripped = |c: char| set.map_or(c.is_whitespace(), |set| set.contains(c));
        let text = if start { text.trim_start_matches(stripped) } else { text };
        Ok(if end { text.trim_end_matches(stripped) } else { text }.into())
    };
    let argument = || from_args(arguments).map(|(argument,): (&str,)| argument);
    Ok(match method {
        "strip" => strip(true, true)?,
        "lstrip" => strip(true, false)?,
        "rstrip" => strip(false, true)?,
        "startswith" => text.starts_with(argument()?).into(),
        "endswith" => text.ends_with(argument()?).into(),
        // Filters of the same name and arguments, which also count what they cost.
        "split" | "replace" | "upper" | "lower" | "title" | "capitalize" => {
            let arguments: Vec<Value> = [value].into_iter().chain(arguments).cloned().collect();
            state.apply_filter(method, &arguments)?
        }
        _ => return Err(ErrorKind::UnknownMethod.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(template: &str) -> Result<String, String> {
        let messages = [Message::new("system", "  Be brief. "), Message::new("user", "Hi")];
        render(template, &messages, true, &[("eos_token", "<eod>")]).map_err(|e| e.to_string())
    }

    #[test]
    fn templates_have_what_transformers_gives_them() {
        for (template, text) in [
            ("{{ eos_token }}{{ bos_token }}", "<eod>"),
            (
                "{% for m in messages %}\n  {% if m['role'] == 'user' %}\nU:{{ m.content }}\n  {% endif %}\n{% endfor %}\n",
                "U:Hi\n",
            ),
            ("{{ messages[0]['content'].strip().upper() }}{{ messages[1].get('name', '?') }}", "BE BRIEF.?"),
            ("{{ messages[0].content.rstrip() ~ messages[0].content.lstrip(' B') }}", "  Be brief.e brief. "),
            ("{{ 'a-b'.split('-')[1] }}{{ 'a b'.split()[0] }}{{ 'Hi'.replace('H', 'K') }}", "baKi"),
            ("{{ 'Hi'.startswith('H') }}{{ 'Hi'.endswith('H') }}", "TrueFalse"),
            (
                "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = loop.index %}{% break %}{% endfor %}{{ ns.n }}",
                "1",
            ),
            ("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(messages | length) }}", "[2]"),
            ("{% if tools is not none %}tools{% endif %}{% if add_generation_prompt %}go{% endif %}", "go"),
        ] {
            assert_eq!(rendered(template).as_deref(), Ok(text), "{template}");
        }
        assert!(
            rendered("{{ raise_exception('turns must alternate') }}")
                .unwrap_err()
                .contains("turns must alternate")
        );
        assert!(rendered("{{ messages[0].content.nothing() }}").unwrap_err().contains("unknown method"));
    }

    #[test]
    fn templates_without_end_are_errors() {
        let nested = format!("{{{{ {}", "(".repeat(100_000));
        for template in [
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "{{ 'x' * 9999999999 }}",
            "{{ ('x' * 9999999).replace('x', 'x' * 9999999) }}",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            &nested,
        ] {
            assert!(rendered(template).is_err(), "{template:.60}");
        }
    }
}
