//! Where two sides do not agree.

use super::declarations::{Declarations, Laid};

/// Declarations that nothing depends on: element types are shown and nothing is decided by them,
/// and the asynchronous functions are behind a gate of the runtime's version.
const INFORMATION: [&str; 3] = ["NRT_DTYPE_", "nrta_", "NRTA_"];

/// What is different, in words.
#[derive(Debug, Default)]
pub(crate) struct Differences {
    /// What code of ours depends on.
    pub(crate) used: Vec<String>,
    /// What is only good to know.
    pub(crate) information: Vec<String>,
    /// Functions and constants that the other side has beside ours.
    pub(crate) unused: usize,
}

impl Differences {
    /// All of them, a line each, those that matter first.
    pub(crate) fn all(&self) -> impl Iterator<Item = String> {
        let used = self.used.iter().map(|text| format!("differs: {text}"));
        let information = self.information.iter();
        used.chain(information.map(|text| format!("to know: {text}")))
    }

    fn add(&mut self, name: &str, text: String) {
        if INFORMATION.iter().any(|start| name.starts_with(start)) {
            self.information.push(text);
        } else {
            self.used.push(text);
        }
    }
}

/// What of `ours` is missing or otherwise in `theirs`.
pub(crate) fn differences(ours: &Declarations, theirs: &Declarations) -> Differences {
    let mut found = Differences::default();
    let functions = (ours.functions(), theirs.functions());
    for (name, our) in &functions.0 {
        match functions.1.get(name) {
            None => found.add(name, format!("there is no function {name}")),
            Some(their) if their != our => {
                found.add(name, format!("{name} is {their}, and ours {our}"));
            }
            Some(_) => {}
        }
    }
    let constants = (ours.constants(), theirs.constants());
    for (name, our) in &constants.0 {
        match constants.1.get(name) {
            None => found.add(name, format!("there is no constant {name}")),
            Some(their) if their != our => {
                found.add(name, format!("{name} is {their}, and ours {our}"));
            }
            Some(_) => {}
        }
    }
    let structs = (ours.structs(), theirs.structs());
    for (name, our) in &structs.0 {
        match structs.1.get(name) {
            None => found.add(name, format!("there is no struct {name}")),
            Some(their) => {
                for text in fields(our, their) {
                    found.add(name, format!("struct {name}: {text}"));
                }
            }
        }
    }
    let functions_more = functions
        .1
        .keys()
        .filter(|name| !functions.0.contains_key(*name));
    let constants_more = constants
        .1
        .keys()
        .filter(|name| !constants.0.contains_key(*name));
    found.unused = functions_more.count() + constants_more.count();
    found
}

/// What is different between two structs of one name.
fn fields(our: &Laid, their: &Laid) -> Vec<String> {
    let mut found = Vec::new();
    if our.size != their.size {
        let bytes = |size: Option<u64>| size.map_or("unknown".to_owned(), |size| size.to_string());
        found.push(format!(
            "{} bytes, and ours {}",
            bytes(their.size),
            bytes(our.size)
        ));
    }
    for (name, offset, of) in &our.fields {
        let Some((_, their_offset, their_type)) =
            their.fields.iter().find(|(field, ..)| field == name)
        else {
            found.push(format!("there is no field {name}"));
            continue;
        };
        if their_type != of {
            found.push(format!("{name} is {their_type}, and ours {of}"));
        }
        if let (Some(our), Some(their)) = (offset, their_offset)
            && our != their
        {
            found.push(format!("{name} is at byte {their}, and ours at {our}"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Declarations {
        let mut declarations = Declarations::default();
        declarations.read(text).expect("what bindgen writes");
        declarations
    }

    /// Compares constants, a function and a struct with the same that `change` has changed.
    fn changed(from: &str, to: &str) -> Differences {
        let ours = "pub const NRT_TIMEOUT: NRT_STATUS = 5;
            pub const NRT_DTYPE_INT8: nrt_dtype_t = 2;
            pub struct nrt_stats { pub used: usize, pub limit: usize }
            const _: () = {
                [\"Size of nrt_stats\"][::std::mem::size_of::<nrt_stats>() - 16usize];
                [\"Offset of field: nrt_stats::limit\"][offset_of!(nrt_stats, limit) - 8usize];
            };
            pub struct Nrt {
                pub nrt_close: Result<unsafe extern \"C\" fn(), ::libloading::Error>,
            }";
        assert!(ours.contains(from), "{from}");
        differences(&read(ours), &read(&ours.replace(from, to)))
    }

    fn check(from: &str, to: &str, difference: &str) {
        let found = changed(from, to);
        assert_eq!(found.used, [difference], "{from} -> {to}");
    }

    #[test]
    fn what_is_the_same_is_no_difference() {
        let found = changed("close", "close");
        assert_eq!(found.all().count(), 0);
        assert_eq!(found.unused, 0);
    }

    #[test]
    fn every_declaration_that_we_use_is_held_to() {
        check(
            "TIMEOUT: NRT_STATUS = 5",
            "TIMEOUT: NRT_STATUS = 6",
            "NRT_TIMEOUT is 6, and ours 5",
        );
        check(
            "NRT_TIMEOUT",
            "NRT_TIME_OUT",
            "there is no constant NRT_TIMEOUT",
        );
        check("nrt_close", "nrt_end", "there is no function nrt_close");
        check(
            "fn()",
            "fn(u8)",
            "nrt_close is (u8) -> (), and ours () -> ()",
        );
        check(
            "- 16usize",
            "- 24usize",
            "struct nrt_stats: 24 bytes, and ours 16",
        );
        check(
            "- 8usize",
            "- 12usize",
            "struct nrt_stats: limit is at byte 12, and ours at 8",
        );
        check(
            "used: usize",
            "used: u32",
            "struct nrt_stats: used is u32, and ours usize",
        );
        check(
            "pub used: usize,",
            "",
            "struct nrt_stats: there is no field used",
        );
    }

    #[test]
    fn numbers_of_element_types_are_only_good_to_know() {
        let found = changed("nrt_dtype_t = 2", "nrt_dtype_t = 4");
        assert!(found.used.is_empty());
        assert_eq!(found.information, ["NRT_DTYPE_INT8 is 4, and ours 2"]);
    }

    #[test]
    fn what_is_new_is_counted() {
        let found = changed(
            "pub const NRT_TIMEOUT",
            "pub const NRT_NEW: u32 = 9;\npub const NRT_TIMEOUT",
        );
        assert_eq!((found.all().count(), found.unused), (0, 1));
    }
}
