//! What is compared: each measure once, as data; medians, ranges and ratios; the table.

use std::fmt::Write as _;

use serde::Serialize;

use super::Name;
use super::report::Round;

/// One figure of a round.
struct Measure {
    name: &'static str,
    /// Digits after the point that are shown.
    digits: usize,
    better: Better,
    /// Whether the figure changes with the number of clients, so that peers are only compared
    /// where they had as many.
    of_load: bool,
    /// Whether the plot shows it.
    plotted: bool,
    of: fn(&Round) -> Option<f64>,
}

/// Which of two values is the better one.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Debug)]
#[serde(rename_all = "lowercase")]
pub(super) enum Better {
    Higher,
    Lower,
}

const fn measure(
    name: &'static str,
    digits: usize,
    better: Better,
    of: fn(&Round) -> Option<f64>,
) -> Measure {
    Measure {
        name,
        digits,
        better,
        of_load: false,
        plotted: false,
        of,
    }
}

impl Measure {
    const fn of_load(self) -> Measure {
        Measure {
            of_load: true,
            ..self
        }
    }

    const fn plotted(self) -> Measure {
        Measure {
            plotted: true,
            ..self
        }
    }
}

const MEASURES: &[Measure] = &[
    measure("one stream: prefill tokens/s", 1, Better::Higher, |round| {
        Some(round.single.single_stream?.prefill_tokens_per_second)
    }),
    measure("one stream: decode tokens/s", 1, Better::Higher, |round| {
        Some(round.single.single_stream?.decode_tokens_per_second)
    })
    .plotted(),
    measure("load: output tokens/s", 1, Better::Higher, |round| {
        Some(round.many.output_tokens_per_second)
    })
    .plotted(),
    measure("load: total tokens/s", 1, Better::Higher, |round| {
        Some(round.many.total_tokens_per_second)
    }),
    measure("load: first token p50, s", 2, Better::Lower, |round| {
        Some(round.many.first_token.p50)
    })
    .of_load()
    .plotted(),
    measure("load: first token p95, s", 2, Better::Lower, |round| {
        Some(round.many.first_token.p95)
    })
    .of_load(),
    measure("load: between tokens p50, s", 3, Better::Lower, |round| {
        Some(round.many.between_tokens.p50)
    })
    .of_load(),
    measure("load: between tokens p95, s", 3, Better::Lower, |round| {
        Some(round.many.between_tokens.p95)
    })
    .of_load(),
    measure(
        "load: longest wait between tokens, s",
        3,
        Better::Lower,
        |round| Some(round.many.between_tokens.max),
    )
    .of_load()
    .plotted(),
    measure("start to ready, s", 2, Better::Lower, |round| {
        Some(round.start_to_ready)
    }),
    measure("peak memory, MiB", 0, Better::Lower, |round| {
        Some(round.peak_bytes as f64 / f64::from(1 << 20))
    }),
];

/// A measure of all peers.
#[derive(Serialize, Debug)]
pub(super) struct Row {
    pub(super) measure: &'static str,
    pub(super) digits: usize,
    pub(super) better: Better,
    /// Whether it changes with the number of clients.
    pub(super) of_load: bool,
    #[serde(skip)]
    pub(super) plotted: bool,
    pub(super) cells: Vec<Cell>,
}

/// A measure of one peer over its rounds.
#[derive(Clone, Copy, Serialize, Debug)]
pub(super) struct Cell {
    pub(super) peer: Name,
    pub(super) clients: u32,
    pub(super) rounds: usize,
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
    /// How many times as good as this peer ours is, where that can be said.
    pub(super) ours_is_better_by: Option<f64>,
}

/// All measures over all rounds, peers in the order they were first measured.
pub(super) fn rows(rounds: &[Round]) -> Vec<Row> {
    let mut peers: Vec<Name> = Vec::new();
    for round in rounds {
        if !peers.contains(&round.peer) {
            peers.push(round.peer);
        }
    }
    MEASURES
        .iter()
        .map(|measure| {
            let cells = peers
                .iter()
                .filter_map(|peer| cell(measure, *peer, rounds))
                .collect();
            compared(Row {
                measure: measure.name,
                digits: measure.digits,
                better: measure.better,
                of_load: measure.of_load,
                plotted: measure.plotted,
                cells,
            })
        })
        .collect()
}

fn cell(measure: &Measure, peer: Name, rounds: &[Round]) -> Option<Cell> {
    let its = || rounds.iter().filter(|round| round.peer == peer);
    let mut values: Vec<f64> = its().filter_map(measure.of).collect();
    values.sort_by(f64::total_cmp);
    Some(Cell {
        peer,
        clients: its().next()?.many.clients,
        rounds: values.len(),
        median: median(&values)?,
        min: *values.first()?,
        max: *values.last()?,
        ours_is_better_by: None,
    })
}

/// The middle of sorted values; of an even number, the mean of the two.
fn median(sorted: &[f64]) -> Option<f64> {
    let below = sorted.get(sorted.len().checked_sub(1)? / 2)?;
    let above = sorted.get(sorted.len() / 2)?;
    Some(f64::midpoint(*below, *above))
}

/// Fills in the ratios.
fn compared(mut row: Row) -> Row {
    let ours = row
        .cells
        .iter()
        .find(|cell| cell.peer == Name::Ours)
        .copied();
    let Some(ours) = ours else { return row };
    for cell in row.cells.iter_mut().filter(|cell| cell.peer != Name::Ours) {
        if row.of_load && cell.clients != ours.clients {
            continue;
        }
        let ratio = match row.better {
            Better::Higher => ours.median / cell.median,
            Better::Lower => cell.median / ours.median,
        };
        cell.ours_is_better_by = ratio.is_finite().then_some(ratio);
    }
    row
}

/// The rows as a Markdown table: medians with their range, and how many times as good ours is.
pub(super) fn table(rows: &[Row]) -> String {
    let mut lines = vec![header(rows)];
    lines.extend(rows.iter().map(line));
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let width =
                |line: &Vec<String>| line.get(column).map_or(0, |text| text.chars().count());
            lines.iter().map(width).max().unwrap_or(0)
        })
        .collect();
    let mut table = String::new();
    for (number, line) in lines.iter().enumerate() {
        for (text, width) in line.iter().zip(&widths) {
            write!(table, "| {text:<width$} ").ok();
        }
        table += "|\n";
        if number == 0 {
            for width in &widths {
                write!(table, "|{:-<1$}", "", width + 2).ok();
            }
            table += "|\n";
        }
    }
    table
}

fn header(rows: &[Row]) -> Vec<String> {
    let cells = rows
        .first()
        .map(|row| row.cells.as_slice())
        .unwrap_or_default();
    let titles = cells
        .iter()
        .map(|cell| format!("{}, {} clients", cell.peer.title(), cell.clients));
    let ratios = peers(cells).map(|cell| format!("better than {} by", cell.peer.title()));
    [String::new()]
        .into_iter()
        .chain(titles)
        .chain(ratios)
        .collect()
}

fn line(row: &Row) -> Vec<String> {
    let digits = row.digits;
    let values = row.cells.iter().map(|cell| match cell.rounds {
        1 => format!("{:.digits$}", cell.median),
        _ => format!(
            "{:.digits$} ({:.digits$} to {:.digits$})",
            cell.median, cell.min, cell.max
        ),
    });
    let ratios = peers(&row.cells).map(|cell| match cell.ours_is_better_by {
        Some(ratio) => format!("{ratio:.2}"),
        None => String::new(),
    });
    [row.measure.to_owned()]
        .into_iter()
        .chain(values)
        .chain(ratios)
        .collect()
}

/// Those that ours is compared with, if ours is there.
fn peers(cells: &[Cell]) -> impl Iterator<Item = &Cell> {
    let ours = cells.iter().any(|cell| cell.peer == Name::Ours);
    cells
        .iter()
        .filter(move |cell| ours && cell.peer != Name::Ours)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::{Report, Spread};

    fn round(peer: Name, clients: u32, rate: f64) -> Round {
        let spread = Spread {
            p50: 1.0 / rate,
            p95: 2.0 / rate,
            max: 3.0 / rate,
        };
        let report = Report {
            clients,
            requests: clients,
            seconds: 10.0,
            prompt_tokens: 200,
            cached_tokens: 0,
            output_tokens: 64,
            events: 64,
            output_tokens_per_second: rate,
            total_tokens_per_second: 4.0 * rate,
            first_token: spread,
            between_tokens: spread,
            single_stream: None,
        };
        Round {
            peer,
            round: 1,
            start_to_ready: 1.0,
            peak_bytes: 3 << 20,
            share_of_others: 0.0,
            single: report.clone(),
            many: report,
        }
    }

    fn row<'a>(rows: &'a [Row], name: &str) -> &'a Row {
        rows.iter().find(|row| row.measure == name).unwrap()
    }

    #[test]
    fn a_row_tells_median_range_and_ratio() {
        let rows = rows(&[
            round(Name::Ours, 32, 60.0),
            round(Name::Llama, 32, 30.0),
            round(Name::Ours, 32, 50.0),
            round(Name::Llama, 32, 25.0),
        ]);
        let rate = row(&rows, "load: output tokens/s");
        assert_eq!(
            line(rate),
            [
                "load: output tokens/s",
                "55.0 (50.0 to 60.0)",
                "27.5 (25.0 to 30.0)",
                "2.00"
            ]
        );
        let wait = row(&rows, "load: longest wait between tokens, s");
        assert_eq!(wait.cells[1].ours_is_better_by.map(f64::round), Some(2.0));
    }

    #[test]
    fn waits_under_different_loads_are_not_compared() {
        let rows = rows(&[round(Name::Ours, 32, 60.0), round(Name::Naive, 8, 10.0)]);
        let ratio = |name| row(&rows, name).cells[1].ours_is_better_by;
        assert_eq!(ratio("load: output tokens/s"), Some(6.0));
        assert_eq!(ratio("load: first token p50, s"), None);
    }

    #[test]
    fn the_median_of_an_even_number_is_the_mean_of_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[1.0, 2.0, 9.0]), Some(2.0));
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), Some(3.0));
    }

    #[test]
    fn without_ours_there_are_no_ratios() {
        let table = table(&rows(&[round(Name::Llama, 32, 30.0)]));
        assert!(!table.contains("better than"), "{table}");
    }
}
