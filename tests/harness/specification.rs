//! Holds `docs/specification.md` to its word: every test that it names exists.

use std::fs;
use std::path::Path;

#[test]
fn every_test_that_is_named_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = fs::read_to_string(root.join("docs/specification.md")).expect("the specification");
    // What stands between two backticks is every second piece.
    let named = text.split('`').skip(1).step_by(2);
    let named: Vec<(&str, &str)> = named.filter_map(|code| code.split_once("::")).collect();
    assert!(named.len() > 100, "only {} tests are named", named.len());
    for (file, name) in named.into_iter().filter(|(file, _)| *file != "FILE") {
        let source = fs::read_to_string(root.join(file)).expect(file);
        let keyword = if file.ends_with(".py") { "def" } else { "fn" };
        let function = format!("{keyword} {name}(");
        assert!(source.contains(&function), "{file} has no {name}");
    }
}
