//! The forms of a table of tests: Markdown, CSV, JSON, a JSON object a line, SQL. Columns have the names that llama-bench gives them.

use clap::ValueEnum;
use serde_json::{Map, Value};

/// The table of SQL.
const TABLE: &str = "yuan_bench";

/// How a table is written: in Markdown, as comma-separated values, a JSON array, a JSON object a line, or statements that fill a table of SQLite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    Md,
    Csv,
    Json,
    Jsonl,
    Sql,
}

/// A table that is written row after row.
pub struct Table {
    form: Form,
    /// Rows that were written.
    rows: usize,
    /// Widths of the columns in Markdown.
    widths: Vec<usize>,
}

/// Columns of Markdown, and whether they are numbers.
const COLUMNS: [(&str, bool); 7] = [
    ("model", false),
    ("size", true),
    ("params", true),
    ("backend", false),
    ("threads", true),
    ("test", true),
    ("t/s", true),
];

impl Table {
    /// A table whose tests have names of up to `longest` letters, of a model with these facts.
    pub fn new(form: Form, facts: &Map<String, Value>, longest: usize) -> Self {
        let cells = cells(facts, "");
        let widths = cells.iter().zip(COLUMNS).map(|(cell, (name, _))| cell.chars().count().max(name.len()));
        let mut widths: Vec<usize> = widths.collect();
        widths[5] = longest.max(widths[5]);
        // 12345.67 ± 1234.56, as wide as in llama-bench.
        widths[6] = 20;
        Self { form, rows: 0, widths }
    }

    /// The lines of a row, behind those that begin the table where it is the first one.
    pub fn row(&mut self, row: &Map<String, Value>, test: &str) -> String {
        let first = self.rows == 0;
        self.rows += 1;
        match self.form {
            Form::Md => {
                let head = if first { self.head() } else { String::new() };
                head + &self.line(cells(row, test).iter().map(String::as_str))
            }
            Form::Csv => {
                let names = plain(row).map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(",") + "\n";
                let values = plain(row).map(|(_, value)| quoted(&text(value), '"'));
                (if first { names } else { String::new() }) + &values.collect::<Vec<_>>().join(",") + "\n"
            }
            Form::Json => format!("{}{}", if first { "[\n" } else { ",\n" }, Value::Object(row.clone())),
            Form::Jsonl => format!("{}\n", Value::Object(row.clone())),
            Form::Sql => {
                let create = if first { create(row) } else { String::new() };
                let names = plain(row).map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
                let value = |value: &Value| match value {
                    Value::Number(number) => number.to_string(),
                    other => quoted(&text(other), '\''),
                };
                let values = plain(row).map(|(_, v)| value(v)).collect::<Vec<_>>().join(", ");
                format!("{create}INSERT INTO {TABLE} ({names}) VALUES ({values});\n")
            }
        }
    }

    /// What ends the table.
    pub fn end(&self) -> &'static str {
        if self.form == Form::Json { "\n]\n" } else { "" }
    }

    fn head(&self) -> String {
        let rule = self.widths.iter().zip(COLUMNS).map(|(&width, (_, number))| {
            let line = "-".repeat(width - usize::from(number));
            if number { line + ":" } else { line }
        });
        let rule: Vec<String> = rule.collect();
        self.line(COLUMNS.iter().map(|(name, _)| *name)) + &self.line(rule.iter().map(String::as_str))
    }

    fn line<'c>(&self, cells: impl Iterator<Item = &'c str>) -> String {
        let cells = cells.zip(&self.widths).zip(COLUMNS).map(|((cell, &width), (_, number))| match number {
            true => format!(" {cell:>width$} |"),
            false => format!(" {cell:<width$} |"),
        });
        format!("|{}\n", cells.collect::<String>())
    }
}

/// A row's cells in Markdown.
fn cells(row: &Map<String, Value>, test: &str) -> [String; 7] {
    let of = |name: &str| row.get(name).map(text).unwrap_or_default();
    let number = |name: &str| row.get(name).and_then(Value::as_f64).unwrap_or(0.0);
    let (few, many) = (of("n_threads"), of("n_threads_batch"));
    [
        of("model_type"),
        format!("{:.2} GiB", number("model_size") / f64::from(1 << 30)),
        weights(number("model_n_params")),
        of("backends"),
        if few == many { few } else { format!("{few}/{many}") },
        test.into(),
        format!("{:.2} ± {:.2}", number("avg_ts"), number("stddev_ts")),
    ]
}

/// A number of weights: `40.1e9` as `40.10 B`.
pub fn weights(count: f64) -> String {
    match count {
        1e9.. => format!("{:.2} B", count / 1e9),
        _ => format!("{:.2} M", count / 1e6),
    }
}

/// The fields that are no lists.
fn plain(row: &Map<String, Value>) -> impl Iterator<Item = (&String, &Value)> {
    row.iter().filter(|(_, value)| !value.is_array())
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}

/// In quotation marks, of which those within are doubled.
fn quoted(text: &str, mark: char) -> String {
    let twice = String::from_iter([mark, mark]);
    format!("{mark}{}{mark}", text.replace(mark, &twice))
}

fn create(row: &Map<String, Value>) -> String {
    let kind = |value: &Value| match value {
        Value::Number(number) if number.is_f64() => "REAL",
        Value::Number(_) => "INTEGER",
        _ => "TEXT",
    };
    let columns: Vec<String> = plain(row).map(|(name, value)| format!("  {name} {}", kind(value))).collect();
    format!("CREATE TABLE IF NOT EXISTS {TABLE} (\n{}\n);\n\n", columns.join(",\n"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row() -> Map<String, Value> {
        let row = json!({
            "model_type": "yuan2 4k", "model_filename": "it's \"mine\", 春.gguf", "model_size": 3u64 << 30, "model_n_params": 40_123_000_000u64,
            "backends": "CPU", "n_threads": 2, "n_threads_batch": 4, "avg_ts": 12.5, "stddev_ts": 0.25, "samples_ts": [12.5],
        });
        row.as_object().unwrap().clone()
    }

    #[test]
    fn a_table_for_people_has_equal_lines() {
        let mut table = Table::new(Form::Md, &row(), 10);
        let lines = table.row(&row(), "pp512") + &table.row(&row(), "tg1 @ d512") + table.end();
        let widths: Vec<usize> = lines.lines().map(|line| line.chars().count()).collect();
        assert_eq!(widths, [widths[0]; 4]);
        assert!(lines.contains("|     2/4 |      pp512 |") && lines.contains("12.50 ± 0.25 |"), "{lines}");
        assert!(lines.contains("| 3.00 GiB | 40.12 B | CPU     |"), "{lines}");
    }

    #[test]
    fn quotation_marks_are_doubled() {
        let csv = Table::new(Form::Csv, &row(), 5).row(&row(), "pp512");
        assert!(csv.starts_with("model_type,model_filename,") && !csv.contains("samples"), "{csv}");
        assert!(csv.contains(r#""it's ""mine"", 春.gguf","3221225472""#), "{csv}");
        let sql = Table::new(Form::Sql, &row(), 5).row(&row(), "pp512");
        assert!(sql.contains("  avg_ts REAL,") && sql.contains("  n_threads INTEGER,"), "{sql}");
        assert!(sql.contains(r#"'it''s "mine", 春.gguf', 3221225472,"#), "{sql}");
    }
}
