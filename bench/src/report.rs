//! Owns how results are kept and shown.

use std::{fmt, path::Path};

use serde::Serialize;

/// One line of the table. Times are medians.
#[derive(Debug, Serialize)]
pub struct Row {
    pub name: String,
    pub unit: String,
    pub berth: f64,
    pub peer: Option<f64>,
    pub peer_name: String,
    /// berth ÷ peer: less is better.
    pub ratio: Option<f64>,
    pub runs: usize,
}

#[derive(Debug, Serialize)]
struct Raw {
    name: String,
    unit: String,
    berth: Vec<f64>,
    peer: Vec<f64>,
}

#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
    raw: Vec<Raw>,
}

impl Report {
    pub fn add(&mut self, name: &str, unit: &str, berth: Vec<f64>, peer: Vec<f64>, peer_name: &str) {
        let of_peer = (!peer.is_empty()).then(|| median(&peer));
        let of_berth = median(&berth);
        self.rows.push(Row {
            name: name.into(),
            unit: unit.into(),
            berth: of_berth,
            peer: of_peer,
            peer_name: peer_name.into(),
            ratio: of_peer.map(|peer| of_berth / peer),
            runs: berth.len(),
        });
        self.raw.push(Raw {
            name: name.into(),
            unit: unit.into(),
            berth,
            peer,
        });
    }

    pub fn write(&self, dir: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(dir)?;
        std::fs::write(dir.join("report.json"), serde_json::to_string_pretty(&self.rows)?)?;
        std::fs::write(dir.join("raw.json"), serde_json::to_string_pretty(&self.raw)?)?;
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<34} {:>10} {:>10} {:>7} {:>5}  unit, peer",
            "", "berth", "peer", "ratio", "runs"
        )?;
        for row in &self.rows {
            let number = |n: Option<f64>, digits: usize| n.map_or("-".into(), |n| format!("{n:.digits$}"));
            let (peer, ratio) = (number(row.peer, 1), number(row.ratio, 2));
            let line = format!(
                "{:<34} {:>10.1} {peer:>10} {ratio:>7} {:>5}",
                row.name, row.berth, row.runs
            );
            writeln!(f, "{line}  {}, {}", row.unit, row.peer_name)?;
        }
        Ok(())
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.as_slice() {
        [] => f64::NAN,
        sorted if sorted.len() % 2 == 1 => sorted[sorted.len() / 2],
        sorted => f64::midpoint(sorted[sorted.len() / 2 - 1], sorted[sorted.len() / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
    }
}
