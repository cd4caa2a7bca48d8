//! Holds the documents that name tests to their word: every test that they name exists.

use std::fs;
use std::path::Path;

#[test]
fn every_test_that_is_named_exists() {
    check("docs/specification.md", 100);
    check("docs/neuron.md", 10);
}

/// The document names at least so many tests, and each exists.
fn check(document: &str, least: usize) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = fs::read_to_string(root.join(document)).expect(document);
    // What stands between two backticks is every second piece.
    let named = text.split('`').skip(1).step_by(2);
    let named: Vec<(&str, &str)> = named.filter_map(|code| code.split_once("::")).collect();
    let count = named.len();
    assert!(count >= least, "{document} names {count} tests only");
    for (file, name) in named.into_iter().filter(|(file, _)| *file != "FILE") {
        let source = fs::read_to_string(root.join(file)).unwrap_or_default();
        let keyword = if file.ends_with(".py") { "def" } else { "fn" };
        let function = format!("{keyword} {name}(");
        assert!(
            source.contains(&function),
            "{document}: {file} has no {name}"
        );
    }
}
