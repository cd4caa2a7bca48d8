//! What is made of libraries that have more or fewer functions: little ones, compiled here by the
//! C compiler that Rust links with.

#![expect(unsafe_code, reason = "opens libraries")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use neuron_sys::{Library, OpenError, Version};

/// Functions without which no library is taken, apart from the one that tells its version.
const REQUIRED: [&str; 20] = [
    "nrt_init",
    "nrt_close",
    "nrt_get_instance_info",
    "nrt_get_total_vnc_count",
    "nrt_get_visible_vnc_count",
    "nrt_load",
    "nrt_load_collectives",
    "nrt_unload",
    "nrt_get_model_tensor_info",
    "nrt_free_model_tensor_info",
    "nrt_allocate_tensor_set",
    "nrt_destroy_tensor_set",
    "nrt_add_tensor_to_tensor_set",
    "nrt_execute",
    "nrt_tensor_allocate",
    "nrt_tensor_allocate_slice",
    "nrt_tensor_free",
    "nrt_tensor_read",
    "nrt_tensor_write",
    "nrt_tensor_get_size",
];

const ASYNCHRONOUS: [&str; 3] = [
    "nrta_execute_schedule",
    "nrta_is_completed",
    "nrta_get_sequence",
];

/// A library of version 2.`minor` with these functions, none of which does anything.
fn library(test: &str, minor: u64, functions: &[&str]) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let source = folder.join(format!("{test}-{minor}.c"));
    let library = folder.join(format!("{test}-{minor}.so"));
    let mut text = format!(
        "int nrt_get_version(unsigned long long *version, unsigned long size) {{
             if (size < 32) return 2;
             version[0] = 2; version[1] = {minor}; version[2] = 10; version[3] = 0;
             return 0;
         }}\n"
    );
    for function in functions {
        text.push_str(&format!("int {function}(void) {{ return 0; }}\n"));
    }
    fs::write(&source, text).expect("a file in cargo's folder for tests");
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .status();
    assert!(compiled.expect("Rust links with cc").success());
    library
}

fn opened(path: &Path) -> Result<Library, OpenError> {
    // SAFETY: nothing runs as it is opened, and no function but the version's is called.
    unsafe { Library::open(Some(path)) }
}

#[test]
fn what_is_required_suffices_and_the_rest_is_told_apart() {
    let library = opened(&library("required", 28, &REQUIRED)).expect("it has what is required");
    assert_eq!(library.version().to_string(), "2.28.10.0");
    assert!(library.nrt().nrt_execute.is_ok());
    assert!(library.nrt().nrt_tensor_memset.is_err());
    assert!(library.nrt().nrt_get_vnc_memory_stats.is_err());
}

#[test]
fn older_names_of_the_counts_do() {
    let older = REQUIRED.map(|name| name.replace("_vnc_count", "_nc_count"));
    let older = older.each_ref().map(String::as_str);
    let library = opened(&library("older-names", 20, &older)).expect("it has what is required");
    assert!(library.nrt().nrt_get_total_vnc_count.is_err());
    assert!(library.nrt().nrt_get_total_nc_count.is_ok());
}

#[test]
fn whatever_is_required_and_missing_is_named_with_the_version() {
    for (index, missing) in REQUIRED.iter().enumerate() {
        let others: Vec<_> = REQUIRED
            .into_iter()
            .filter(|name| name != missing)
            .collect();
        let path = library(&format!("missing-{index}"), 21, &others);
        let error = opened(&path).expect_err("one is missing");
        let OpenError::Missing {
            version, symbol, ..
        } = &error
        else {
            panic!("{error}");
        };
        assert_eq!(symbol, missing);
        assert_eq!(version.map(|version| version.minor), Some(21));
        assert!(error.to_string().contains("version 2.21.10.0"), "{error}");
    }
}

#[test]
fn asynchronous_functions_are_there_from_the_version_on_that_gave_them_their_form() {
    let all: Vec<_> = REQUIRED.into_iter().chain(ASYNCHRONOUS).collect();
    let check = |minor, functions: &[&str], there: bool| {
        let name = format!("asynchronous-{}", functions.len());
        let library = opened(&library(&name, minor, functions)).expect("it has what is required");
        let found = library.asynchronous().is_some();
        assert_eq!(found, there, "2.{minor}, {} functions", functions.len());
        assert_eq!(library.version().minor, minor);
    };
    check(30, &all, false);
    check(31, &all, true);
    check(34, &all, true);
    check(34, &all[..all.len() - 1], false);
    assert!(Version::new(2, 30) < Version::new(2, 31));
}
