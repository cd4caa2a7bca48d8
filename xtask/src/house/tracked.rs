//! What may be in the repository: text of reasonable size, at home on any machine.

/// The largest file, in bytes. Goldens are a few hundred KB each.
const LARGEST: usize = 1 << 20;

/// Where binary files may be, and why.
const BINARY: &[(&str, &str)] = &[];

/// Texts that no file may contain, cut in two so that this list does not contain them either.
const FOREIGN: &[([&str; 2], &str)] = &[
    (["/ho", "me/"], "a path of one person's machine"),
    (["/ro", "ot/"], "a path of one person's machine"),
    (["/Us", "ers/"], "a path of one person's machine"),
    (["/wo", "rk/"], "a path of one person's machine"),
    (
        ["/tm", "p/"],
        "a path that other users of the machine can write to; ask for a fresh one",
    ),
    (
        ["--index", "-url"],
        "where packages come from is the machine's setting",
    ),
    (
        ["--extra-index", "-url"],
        "where packages come from is the machine's setting",
    ),
    (
        ["--find", "-links"],
        "where packages come from is the machine's setting",
    ),
    (
        ["replace", "-with"],
        "where packages come from is the machine's setting",
    ),
];

/// What begins like a foreign text and is none, cut in two likewise.
const KNOWN: &[([&str; 2], &str)] = &[(
    ["/tm", "p/neuron_mem_table"],
    "where AWS's runtime writes what fills a device: we only tell of it",
)];

/// The one place that crates come from, as `Cargo.lock` writes it.
const CRATES: &str = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";

/// What the file at `path` breaks.
pub(crate) fn broken(path: &str, bytes: &[u8]) -> Vec<String> {
    let mut broken = Vec::new();
    if bytes.len() > LARGEST {
        broken.push(format!(
            "{path} has {} bytes; no file may have over {LARGEST}",
            bytes.len()
        ));
    }
    match str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => broken.extend(foreign(path, text)),
        _ if BINARY.iter().any(|(folder, _)| path.starts_with(folder)) => {}
        _ => broken.push(format!("{path} is binary: commit the script that makes it")),
    }
    broken
}

fn foreign(path: &str, text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        for (parts, reason) in FOREIGN {
            let foreign = parts.concat();
            let known = KNOWN.iter().map(|(parts, _)| parts.concat());
            let line = known.fold(line.to_owned(), |line, known| line.replace(&known, ""));
            if begins_a_word(&line, &foreign) {
                broken.push(format!("{path}:{number} contains {foreign}: {reason}"));
            }
        }
        if path.ends_with("Cargo.lock") && line.starts_with("source = ") && line != CRATES {
            broken.push(format!(
                "{path}:{number}: crates come from crates.io only, not {line}"
            ));
        }
    }
    broken
}

/// Whether `line` contains `foreign` other than as the end of a longer path or word.
fn begins_a_word(line: &str, foreign: &str) -> bool {
    let mut before = line
        .match_indices(foreign)
        .map(|(at, _)| line[..at].chars().next_back());
    before.any(|last| !last.is_some_and(|c| c.is_alphanumeric() || "._-})".contains(c)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, bytes: &[u8], told: &str) {
        assert_eq!(broken(path, bytes).join("; "), told);
    }

    #[test]
    fn text_of_any_script_may_be_in_the_repository() {
        check("a.md", "résumé 日本語".as_bytes(), "");
        check("a.rs", b"", "");
    }

    #[test]
    fn binaries_may_not() {
        check(
            "a.bin",
            b"ab\0c",
            "a.bin is binary: commit the script that makes it",
        );
        check(
            "a.bin",
            b"\xff\xfe",
            "a.bin is binary: commit the script that makes it",
        );
    }

    #[test]
    fn files_are_at_most_one_mebibyte() {
        check("a.json", &vec![b' '; 1 << 20], "");
        check(
            "a.json",
            &vec![b' '; (1 << 20) + 1],
            "a.json has 1048577 bytes; no file may have over 1048576",
        );
    }

    #[test]
    fn nobodys_machine_is_named() {
        let path = ["/ho", "me/"].concat();
        check(
            "a.sh",
            format!("cd x\ncd {path}me").as_bytes(),
            &format!("a.sh:2 contains {path}: a path of one person's machine"),
        );
        check(
            "a.sh",
            format!("cd target{path}me; cd ..{path}me").as_bytes(),
            "",
        );
    }

    #[test]
    fn what_other_programs_write_may_be_told_of() {
        let table = KNOWN[0].0.concat();
        check("a.rs", format!("see {table}_1.log").as_bytes(), "");
        let path = FOREIGN[4].0.concat();
        let line = format!("see {table}_1.log, or {path}a");
        let told = broken("a.rs", line.as_bytes());
        assert!(
            told.len() == 1 && told[0].starts_with("a.rs:1 contains"),
            "{told:?}"
        );
    }

    #[test]
    fn crates_come_from_one_place() {
        check("Cargo.lock", CRATES.as_bytes(), "");
        check(
            "fuzz/Cargo.lock",
            b"source = \"git+https://example.com/x\"",
            "fuzz/Cargo.lock:1: crates come from crates.io only, not source = \
             \"git+https://example.com/x\"",
        );
    }
}
