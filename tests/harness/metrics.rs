//! `/metrics` as a scraper reads it: the Prometheus text format, version 0.0.4.

use std::collections::BTreeMap;

/// One scrape.
#[derive(Clone, Debug)]
pub struct Metrics {
    series: Vec<Series>,
    kinds: BTreeMap<String, String>,
}

/// One line of a scrape.
#[derive(Clone, Debug)]
pub struct Series {
    /// The metric's name with its suffix: `.._total`, `.._bucket`.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

impl Metrics {
    /// Parses a scrape; a line that is none of a comment, an empty line and a series is an error.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut metrics = Self {
            series: Vec::new(),
            kinds: BTreeMap::new(),
        };
        for line in text.lines() {
            if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind
                    .split_once(' ')
                    .ok_or_else(|| anyhow::anyhow!("a type without a name: {line:?}"))?;
                metrics.kinds.insert(name.into(), kind.into());
            } else if !line.is_empty() && !line.starts_with('#') {
                metrics.series.push(Series::parse(line)?);
            }
        }
        Ok(metrics)
    }

    /// All series in the order of the scrape.
    pub fn series(&self) -> &[Series] {
        &self.series
    }

    /// The type of a metric by its name without suffix: `counter`, `gauge`, `histogram`.
    pub fn kind(&self, name: &str) -> Option<&str> {
        self.kinds.get(name).map(String::as_str)
    }

    /// All series of a name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Series> {
        self.series.iter().filter(move |series| series.name == name)
    }

    /// The first series of a name that has these labels among its own; fails the test if none has.
    pub fn labelled(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.all(name)
            .find(|series| series.has(labels))
            .unwrap_or_else(|| panic!("no series {name} with {labels:?}"))
            .value
    }

    /// The first series of a name.
    pub fn value(&self, name: &str) -> f64 {
        self.labelled(name, &[])
    }

    /// The upper edges of a histogram's buckets, as written.
    pub fn edges(&self, name: &str) -> Vec<String> {
        let name = format!("{name}_bucket");
        let edges = self.all(&name).map(|series| series.labels["le"].clone());
        edges.collect()
    }
}

impl Series {
    fn has(&self, labels: &[(&str, &str)]) -> bool {
        labels
            .iter()
            .all(|(key, value)| self.labels.get(*key).map(String::as_str) == Some(*value))
    }

    fn parse(line: &str) -> anyhow::Result<Self> {
        let (head, value) = line
            .rsplit_once(' ')
            .ok_or_else(|| anyhow::anyhow!("a series without a value: {line:?}"))?;
        let (name, labels) = match head.split_once('{') {
            None => (head, BTreeMap::new()),
            Some((name, rest)) => {
                let inside = rest
                    .strip_suffix('}')
                    .ok_or_else(|| anyhow::anyhow!("labels without an end: {line:?}"))?;
                (name, parse_labels(inside)?)
            }
        };
        Ok(Self {
            name: name.into(),
            labels,
            value: value.parse()?,
        })
    }
}

/// `key="value",..` with `\\`, `\"` and `\n` escaped.
fn parse_labels(mut text: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    while !text.is_empty() {
        let (key, rest) = text
            .split_once("=\"")
            .ok_or_else(|| anyhow::anyhow!("no label: {text:?}"))?;
        let mut value = String::new();
        let mut chars = rest.char_indices();
        let end = loop {
            match chars.next() {
                Some((at, '"')) => break at,
                Some((_, '\\')) => match chars.next() {
                    Some((_, 'n')) => value.push('\n'),
                    Some((_, other)) => value.push(other),
                    None => anyhow::bail!("an escape without its character"),
                },
                Some((_, other)) => value.push(other),
                None => anyhow::bail!("a label's value without an end: {text:?}"),
            }
        };
        labels.insert(key.into(), value);
        text = rest[end + 1..].trim_start_matches(',');
    }
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_is_read_series_by_series() {
        let text = "# HELP a what\n# TYPE a counter\na_total{m=\"x,\\\"y\",n=\"\"} 3\n\nb 1e-3\n";
        let metrics = Metrics::parse(text).unwrap();
        assert_eq!(
            metrics.labelled("a_total", &[("m", "x,\"y"), ("n", "")]),
            3.0
        );
        assert_eq!(metrics.value("b"), 0.001);
        assert_eq!(metrics.kind("a"), Some("counter"));
        assert!(Metrics::parse("nonsense").is_err());
    }
}
