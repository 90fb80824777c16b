//! The board for Grafana asks for figures that there are.

use crate::common::{Running, agent};

#[test]
fn every_figure_of_the_board_is_counted() {
    let text = include_str!("../../grafana.json");
    let board: serde_json::Value = serde_json::from_str(text).unwrap();
    let server = Running::new();
    let counted = agent().get(server.url("/metrics")).call().unwrap().into_body().read_to_string().unwrap();
    let mut figures = 0;
    for target in board["panels"].as_array().unwrap().iter().flat_map(|p| p["targets"].as_array().unwrap()) {
        let asked = target["expr"].as_str().unwrap();
        for name in
            asked.split(|c: char| c != '_' && !c.is_alphanumeric()).filter(|word| word.starts_with("yuan_"))
        {
            let there = |line: &str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
            assert!(counted.lines().any(there), "{name}");
            figures += 1;
        }
    }
    assert!(figures > 15, "{figures}");
}
