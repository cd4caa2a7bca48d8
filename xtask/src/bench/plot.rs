//! The picture of a run: a panel for each plotted measure, a bar for each peer, as SVG.

use std::fmt::Write as _;

use super::Name;
use super::measures::{Better, Cell, Row};

/// Size of a panel, in pixels; two stand side by side.
const PANEL: (f64, f64) = (430.0, 170.0);
/// Where bars begin, after the peers' names.
const LEFT: f64 = 90.0;
/// The longest bar; values are written after it.
const LONGEST: f64 = 230.0;
/// A bar and the space to the next one.
const BAR: (f64, f64) = (24.0, 12.0);

/// Draws the plotted rows.
pub(super) fn svg(rows: &[Row]) -> String {
    let plotted: Vec<&Row> = rows.iter().filter(|row| row.plotted).collect();
    let width = 2.0 * PANEL.0;
    let height = plotted.len().div_ceil(2) as f64 * PANEL.1;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (number, row) in plotted.into_iter().enumerate() {
        let (x, y) = ((number % 2) as f64 * PANEL.0, (number / 2) as f64 * PANEL.1);
        writeln!(svg, "<g transform=\"translate({x} {y})\">").ok();
        panel(&mut svg, row);
        svg += "</g>\n";
    }
    svg + "</svg>\n"
}

fn panel(svg: &mut String, row: &Row) {
    let better = match row.better {
        Better::Higher => "higher is better",
        Better::Lower => "lower is better",
    };
    writeln!(
        svg,
        "<text x=\"10\" y=\"24\" font-weight=\"bold\">{}</text>\
         <text x=\"{}\" y=\"24\" text-anchor=\"end\" fill=\"#666\">{better}</text>",
        row.measure,
        PANEL.0 - 20.0
    )
    .ok();
    // Waits under fewer clients are no match for waits under more: the table has them.
    let clients = row.cells.iter().map(|cell| cell.clients).max();
    let shown = || {
        row.cells
            .iter()
            .filter(|cell| !row.of_load || Some(cell.clients) == clients)
    };
    let most = shown()
        .map(|cell| cell.max)
        .fold(f64::MIN_POSITIVE, f64::max);
    for (number, cell) in shown().enumerate() {
        let y = 38.0 + number as f64 * (BAR.0 + BAR.1);
        bar(svg, cell, row.digits, y, LONGEST / most);
    }
}

/// A bar as long as the median, the range of the rounds as a line over its end.
fn bar(svg: &mut String, cell: &Cell, digits: usize, y: f64, scale: f64) {
    let [median, min, max] = [cell.median, cell.min, cell.max].map(|value| value * scale);
    let (middle, text) = (y + BAR.0 / 2.0, y + BAR.0 / 2.0 + 4.5);
    writeln!(
        svg,
        "<text x=\"10\" y=\"{text}\">{}</text>\
         <rect x=\"{LEFT}\" y=\"{y}\" width=\"{median:.1}\" height=\"{}\" fill=\"{}\"/>\
         <line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle}\" y2=\"{middle}\" stroke=\"black\"/>\
         <text x=\"{:.1}\" y=\"{text}\">{:.digits$}</text>",
        cell.peer.title(),
        BAR.0,
        colour(cell.peer),
        LEFT + min,
        LEFT + max,
        LEFT + max + 8.0,
        cell.median,
    )
    .ok();
}

fn colour(peer: Name) -> &'static str {
    match peer {
        Name::Ours => "#2a6fdb",
        Name::Llama => "#c98a2b",
        Name::Naive => "#9a9a9a",
    }
}
