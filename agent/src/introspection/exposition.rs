//! Owns the text form of metrics (OpenMetrics 1.0, which Prometheus and its relatives read). Never knows what they mean.

use std::fmt::{Display, Write};

use crate::metrics::{BUCKETS_S, Histogram};

/// Metrics as text, one family after the other.
#[derive(Debug, Default)]
pub struct Exposition(String);

/// What a family's figures are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Exposition {
    /// Begins a family; its samples follow.
    pub fn family(&mut self, name: &str, kind: Kind, help: &str) -> &mut Self {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        // A counter's samples have a suffix that its family has not.
        let name = name.strip_suffix("_total").unwrap_or(name);
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        self
    }

    /// One sample.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) -> &mut Self {
        self.0.push_str(name);
        for (index, (key, value)) in labels.iter().enumerate() {
            self.0.push(if index == 0 { '{' } else { ',' });
            let _ = write!(self.0, "{key}=\"");
            escape(&mut self.0, value);
            self.0.push('"');
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
        self
    }

    /// A family of one figure without labels.
    pub fn single(&mut self, name: &str, kind: Kind, help: &str, value: impl Display) -> &mut Self {
        self.family(name, kind, help).sample(name, &[], value)
    }

    /// The samples of one histogram; `label` tells it from others of its family.
    pub fn histogram(&mut self, name: &str, label: Option<(&str, &str)>, histogram: &Histogram) {
        let (counts, sum) = histogram.cumulative();
        let bucket = format!("{name}_bucket");
        for (index, count) in counts.iter().enumerate() {
            let bound = BUCKETS_S.get(index).map_or_else(|| "+Inf".into(), f64::to_string);
            let labels: Vec<_> = label.into_iter().chain([("le", bound.as_str())]).collect();
            self.sample(&bucket, &labels, count);
        }
        let labels: Vec<_> = label.into_iter().collect();
        self.sample(&format!("{name}_sum"), &labels, sum);
        self.sample(&format!("{name}_count"), &labels, counts[counts.len() - 1]);
    }

    /// All of it, after what another encoder made.
    pub fn into_text(mut self, begun: &str) -> String {
        const END: &str = "# EOF\n";
        self.0.insert_str(0, begun.strip_suffix(END).unwrap_or(begun));
        self.0.push_str(END);
        self.0
    }
}

fn escape(text: &mut String, value: &str) {
    for letter in value.chars() {
        match letter {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_as_the_format_says() {
        let mut exposition = Exposition::default();
        exposition.family("x_total", Kind::Counter, "Things.").sample(
            "x_total",
            &[("a", "q\"\\\n"), ("b", "")],
            1.5,
        );
        exposition.single("y", Kind::Gauge, "One.", 7);
        assert_eq!(
            exposition.into_text("z 1\n# EOF\n"),
            "z 1\n# HELP x Things.\n# TYPE x counter\nx_total{a=\"q\\\"\\\\\\n\",b=\"\"} 1.5\n\
             # HELP y One.\n# TYPE y gauge\ny 7\n# EOF\n"
        );
    }
}
