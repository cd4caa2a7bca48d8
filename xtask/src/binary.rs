//! The release binary: one stripped file that any Linux host of its architecture can start.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail, ensure};

use crate::run::output;

/// The libraries it may need: the C library, in its parts, and the compiler's unwinder. Device
/// libraries are opened at run time.
const LIBRARIES: &[&str] = &["libc.so", "libm.so", "libgcc_s.so", "ld-linux"];

/// Checks the binary at `path`; an error that names what is wrong with it.
pub(crate) fn check(path: &Path) -> Result<()> {
    let read = |flag| output(Command::new("readelf").args(["--wide", flag]).arg(path));
    let dynamic = read("--dynamic")?;
    let foreign = foreign(&dynamic);
    ensure!(
        foreign.is_empty(),
        "{} links {}",
        path.display(),
        foreign.join(", ")
    );
    if has_symbols(&read("--section-headers")?) {
        bail!("{} is not stripped", path.display());
    }
    let bytes = path.metadata()?.len();
    println!(
        "{}: {bytes} bytes, stripped, links libc alone",
        path.display()
    );
    Ok(())
}

/// The libraries in `readelf --dynamic` that are not allowed.
fn foreign(dynamic: &str) -> Vec<&str> {
    let needed = dynamic.lines().filter(|line| line.contains("(NEEDED)"));
    let names = needed.filter_map(|line| line.split(['[', ']']).nth(1));
    names
        .filter(|name| !LIBRARIES.iter().any(|allowed| name.starts_with(allowed)))
        .collect()
}

/// Whether `readelf --section-headers` lists a symbol table beside the dynamic one, or debug
/// information.
fn has_symbols(sections: &str) -> bool {
    sections
        .split_whitespace()
        .any(|word| word == ".symtab" || word.starts_with(".debug_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What readelf prints for a library that is needed.
    fn needed(name: &str) -> String {
        format!(" 0x0000000000000001 (NEEDED)             Shared library: [{name}]\n")
    }

    #[test]
    fn only_the_c_library_may_be_linked() {
        let libc = [
            "libc.so.6",
            "libm.so.6",
            "libgcc_s.so.1",
            "ld-linux-x86-64.so.2",
        ];
        assert!(foreign(&libc.map(needed).concat()).is_empty());
        assert_eq!(
            foreign(&["libc.so.6", "libssl.so.3"].map(needed).concat()),
            ["libssl.so.3"]
        );
    }

    #[test]
    fn symbols_are_seen() {
        assert!(has_symbols("  [38] .symtab           SYMTAB  0000 0"));
        assert!(has_symbols("  [30] .debug_info       PROGBITS  0000 0"));
        assert!(!has_symbols("  [ 6] .dynsym           DYNSYM  0000 0"));
    }

    #[test]
    fn the_very_program_that_tests_this_is_read() {
        // Built for tests, so not stripped: the check must say so.
        let myself = std::env::current_exe().expect("a running program has a path");
        let error = check(&myself)
            .expect_err("it holds debug information")
            .to_string();
        assert!(error.contains("is not stripped"), "{error}");
    }
}
