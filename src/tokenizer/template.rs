//! Chat templates in Jinja, with what the templates of Hugging Face models use beside it.

use std::{
    fmt::{self, Write},
    io,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use minijinja::{
    Environment, Error, ErrorKind, State, Value,
    syntax::SyntaxConfig,
    value::{Kwargs, Serde, ValueKind, from_args},
};
use serde::Serialize;
use serde_json::{Value as Json, json};

use super::{
    message::{Call, Chat, Message},
    namespace::misused,
};

/// Steps that a template may take, beside those that its messages need: a template from a file must not run without end.
const FUEL: u64 = 1_000_000;

/// Bytes of the longest text that a template may make, beside those of its messages.
const LONGEST: usize = 16 << 20;

/// The text that `template` makes of this conversation and marks (`eos_token` and so on).
pub(super) fn render(
    template: &str,
    chat: &Chat<'_>,
    marks: &[(&'static str, &str)],
) -> Result<String, Error> {
    let variables = Variables {
        messages: chat.messages.iter().map(message).collect(),
        add_generation_prompt: chat.add_generation_prompt,
        tools: if chat.tools.is_empty() { Json::Null } else { chat.tools.into() },
        documents: (),
        enable_thinking: chat.thinking,
    };
    render_json(template, &variables, marks)
}

/// What a template asks for beside the messages.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Asks {
    /// Functions that the model may call.
    pub tools: bool,
    /// Whether the model is to think.
    pub thinking: bool,
}

impl Asks {
    /// Those of this template; none of one that does not compile.
    pub fn of(template: &str) -> Self {
        let variables = environment().and_then(|environment| {
            environment.template_from_str(template).map(|template| template.undeclared_variables(false))
        });
        variables.map_or_else(
            |_| Self::default(),
            |asked| Self { tools: asked.contains("tools"), thinking: asked.contains("enable_thinking") },
        )
    }
}

/// What templates are told.
#[derive(Serialize)]
struct Variables {
    messages: Vec<Json>,
    add_generation_prompt: bool,
    /// transformers passes these two always, and templates ask whether they are none.
    tools: Json,
    documents: (),
    /// Templates ask whether it is defined.
    #[serde(skip_serializing_if = "Option::is_none")]
    enable_thinking: Option<bool>,
}

/// A message as transformers has it.
fn message(message: &Message) -> Json {
    let mut fields = json!({ "role": message.role, "content": message.content });
    if let Some(reasoning) = &message.reasoning {
        fields["reasoning_content"] = json!(reasoning);
    }
    if !message.calls.is_empty() {
        let call = |call: &Call| json!({ "type": "function", "function": { "name": call.name, "arguments": call.arguments } });
        fields["tool_calls"] = message.calls.iter().map(call).collect();
    }
    fields
}

fn render_json(
    template: &str,
    variables: &impl Serialize,
    marks: &[(&'static str, &str)],
) -> Result<String, Error> {
    let variables = serde_json::to_value(variables)
        .map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    if let Some(problem) = misused(template) {
        return Err(Error::new(ErrorKind::InvalidOperation, problem));
    }
    let mut environment = environment()?;
    // One unit pays for one instruction or for 64 bytes: a template can go over the messages dozens of times, and show them as often.
    let bytes = variables.to_string().len();
    environment.set_fuel(Some(FUEL.saturating_add(bytes as u64)));
    bound(&mut environment, bytes.saturating_mul(TIMES).saturating_add(LONGEST));
    for (name, text) in marks {
        environment.add_global(*name, *text);
    }
    environment.render_str(template, Serde(&variables))
}

/// How often a template may show its messages.
const TIMES: usize = 64;

/// Lets a template show so many bytes. Fuel does not pay for what a value becomes when it is shown: a list that was repeated has any length.
fn bound(environment: &mut Environment<'_>, bytes: usize) {
    let left = AtomicUsize::new(bytes);
    environment.set_formatter(move |out, _, value| {
        let mut bounded = Bounded { out, left: left.load(Relaxed) };
        write!(bounded, "{value}").map_err(|_| {
            Error::new(ErrorKind::WriteFailure, format!("the text has more than {bytes} bytes"))
        })?;
        left.store(bounded.left, Relaxed);
        Ok(())
    });
}

struct Bounded<'a, W> {
    out: &'a mut W,
    left: usize,
}

impl<W: Write> Write for Bounded<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.left = self.left.checked_sub(text.len()).ok_or(fmt::Error)?;
        self.out.write_str(text)
    }
}

/// As transformers sets Jinja up.
fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_filter("tojson", tojson);
    environment.set_unknown_method_callback(python_method);
    Ok(environment)
}

/// JSON as Python writes it: on one line, with spaces behind its commas and colons. How it is asked for otherwise is passed over.
fn tojson(value: Serde<Json>, _: Kwargs) -> Result<String, Error> {
    let failed = |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, e.to_string());
    let mut out = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Spaced)).map_err(failed)?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}

struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }

    /// As few digits as say which number it is, of equally near ones the even; an exponent, with a sign and two digits at least, below 1e-4 and from 1e16.
    fn write_f64<W: ?Sized + io::Write>(&mut self, out: &mut W, value: f64) -> io::Result<()> {
        let shortest = format!("{value:e}");
        let (digits, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
        let behind = digits.bytes().filter(u8::is_ascii_digit).count() - 1;
        // At this length the digits are those of the nearest number, and ties go to the even one.
        match exponent.parse::<i32>() {
            Ok(e) if (-4..16).contains(&e) => {
                let places = usize::try_from(behind as i32 - e).unwrap_or(0).max(1);
                write!(out, "{value:.places$}")
            }
            _ => {
                let text = format!("{value:.behind$e}");
                let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
                let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
                write!(out, "{digits}e{sign}{exponent:0>2}")
            }
        }
    }
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

    /// Yuan 3.0's conversations with all that a template can be told, as the authors' template shows them.
    #[test]
    fn chats_of_yuan3_are_those_of_the_authors() {
        let goldens = include_str!("../../tests/fixtures/yuan3-chats.json");
        let chats: Vec<Json> = serde_json::from_str(goldens).unwrap();
        assert_eq!(chats.len(), 23);
        for chat in chats {
            let text = render_json(crate::vocab::YUAN3_CHAT_TEMPLATE, &chat["input"], &[]);
            assert_eq!(text.as_deref().ok(), chat["text"].as_str(), "{}: {text:?}", chat["name"]);
        }
    }

    #[test]
    fn json_has_the_numbers_as_python_writes_them() {
        let numbers = "[1e15, 1e16, 123456789012345680.0, 0.0001, 1e-5, -2.5e-7, -0.0, 1.0, 5e-324, 1.5e300, 3.17377381432233e-11, 1224390684511910.25, 18446744073709551615, -7]";
        let numbers: Json = serde_json::from_str(numbers).unwrap();
        assert_eq!(
            tojson(Serde(numbers), Kwargs::from_iter::<[(&str, Value); 0]>([])).unwrap(),
            "[1000000000000000.0, 1e+16, 1.2345678901234568e+17, 0.0001, 1e-05, -2.5e-07, -0.0, 1.0, 5e-324, 1.5e+300, \
             3.17377381432233e-11, 1224390684511910.2, 18446744073709551615, -7]"
        );
    }

    fn rendered(template: &str) -> Result<String, String> {
        let messages = [Message::new("system", "  Be brief. "), Message::new("user", "Hi")];
        let chat = Chat { messages: &messages, add_generation_prompt: true, ..Chat::default() };
        render(template, &chat, &[("eos_token", "<eod>")]).map_err(|e| e.to_string())
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
            "{{ messages * 9999999 }}",
            "{% for i in range(99) %}{{ messages * 99999 }}{% endfor %}",
            "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
            "{% set ns = namespace() %}{% set ns.x = [ns, ns] %}{{ ns | tojson }}",
            &nested,
        ] {
            assert!(rendered(template).is_err(), "{template:.60}");
        }
    }
}
