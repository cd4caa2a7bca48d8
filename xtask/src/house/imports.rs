//! Who imports whom, read from `cargo metadata` and held against the rules.

use cargo_metadata::{DependencyKind, Metadata};

use super::rooms::{ROOMS, Room, SHORT, TIES, WORKSHOPS};

/// One crate of ours declares that it depends on another crate.
#[derive(Debug)]
struct Import<'a> {
    from: &'a str,
    to: &'a str,
    /// Whether `to` is in the workspace as well.
    ours: bool,
    kind: DependencyKind,
}

/// Every rule about imports that the workspace breaks. Dependencies count as declared, of every
/// kind and for every platform, optional ones too.
pub(crate) fn broken(metadata: &Metadata) -> Vec<String> {
    let packages = metadata.workspace_packages();
    let homeless = packages
        .iter()
        .filter(|package| room(&package.name).is_none())
        .map(|package| {
            format!(
                "{} has no room: list it in xtask/src/house/rooms.rs and docs/architecture.md",
                package.name
            )
        });
    let imports = packages.iter().flat_map(|package| {
        package.dependencies.iter().map(|dependency| Import {
            from: &package.name,
            to: &dependency.name,
            ours: dependency.path.is_some(),
            kind: dependency.kind,
        })
    });
    homeless
        .chain(imports.filter_map(|import| import.broken()))
        .collect()
}

impl Import<'_> {
    fn broken(&self) -> Option<String> {
        if self.ours {
            self.upward()
        } else {
            self.tied().or_else(|| self.excess())
        }
    }

    /// An import between our crates that the table does not list.
    fn upward(&self) -> Option<String> {
        let room = room(self.from)?;
        (!room.imports.contains(&self.to)).then(|| self.because(room.reason))
    }

    /// An outside crate that is tied to other rooms.
    fn tied(&self) -> Option<String> {
        let tie = TIES
            .iter()
            .find(|tie| tie.crates.iter().any(|name| names(name, self.to)))?;
        let home = WORKSHOPS.contains(&self.from) || tie.rooms.contains(&self.from);
        (!home).then(|| self.because(tie.reason))
    }

    /// An outside crate in a room that is to stay small.
    fn excess(&self) -> Option<String> {
        let short = SHORT.iter().find(|short| short.room == self.from)?;
        let listed = short.crates.contains(&self.to)
            || (self.kind == DependencyKind::Development && short.tests.contains(&self.to));
        (!listed).then(|| self.because(short.reason))
    }

    fn because(&self, reason: &str) -> String {
        let Import { from, to, kind, .. } = self;
        let kind = match kind {
            DependencyKind::Development => " for its tests",
            DependencyKind::Build => " for its build script",
            _ => "",
        };
        format!("{from} may not depend on {to}{kind}: {reason}")
    }
}

fn room(name: &str) -> Option<&'static Room> {
    ROOMS.iter().find(|room| room.name == name)
}

/// Whether `pattern` stands for `name`.
fn names(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use cargo_metadata::MetadataCommand;

    use super::*;

    /// What cargo would say of a workspace whose crate `from` declares these dependencies. One
    /// that starts with `./` is a crate of ours; `kind` is `null`, `"dev"` or `"build"`.
    fn workspace(from: &str, to: &[&str], kind: &str) -> Metadata {
        let mut dependencies = String::new();
        for name in to {
            let comma = if dependencies.is_empty() { "" } else { "," };
            let path = name
                .strip_prefix("./")
                .map_or(String::new(), |name| format!(r#","path":"/w/{name}""#));
            let name = name.trim_start_matches("./");
            write!(
                dependencies,
                r#"{comma}{{"name":"{name}","source":null,"req":"*","kind":{kind},"rename":null,
                "optional":false,"uses_default_features":true,"features":[],"target":null,
                "registry":null{path}}}"#
            )
            .expect("a string takes what is written to it");
        }
        let metadata = format!(
            r#"{{"packages":[{{"name":"{from}","version":"0.1.0","id":"{from}","license":null,
            "license_file":null,"description":null,"source":null,"dependencies":[{dependencies}],
            "targets":[],"features":{{}},"manifest_path":"/w/{from}/Cargo.toml","metadata":null,
            "publish":null,"authors":[],"categories":[],"keywords":[],"readme":null,
            "repository":null,"homepage":null,"documentation":null,"edition":"2024","links":null,
            "default_run":null,"rust_version":null}}],"workspace_members":["{from}"],
            "workspace_default_members":["{from}"],"resolve":null,"target_directory":"/w/target",
            "version":1,"workspace_root":"/w","metadata":null}}"#
        );
        MetadataCommand::parse(metadata).expect("cargo's own format")
    }

    fn check_kind(from: &str, to: &str, kind: &str, allowed: bool) {
        let broken = broken(&workspace(from, &[to], kind));
        assert_eq!(
            broken.is_empty(),
            allowed,
            "{from} -> {to} ({kind}): {broken:?}"
        );
    }

    fn check(from: &str, to: &str, allowed: bool) {
        check_kind(from, to, "null", allowed);
    }

    #[test]
    fn imports_run_downward() {
        check("appliance", "./engine", true);
        check("appliance", "./cpu-backend", true);
        check("appliance", "./graph", false);
        check("appliance", "./neuron-sys", false);
        check("engine", "./model", false);
        check("engine", "./cpu-backend", false);
        check("model", "./engine", false);
        check("cpu-backend", "./engine", true);
        check("cpu-backend", "./appliance", false);
        check("cpu-backend", "./neuron-backend", false);
        check("neuron-backend", "./graph", true);
        check("neuron-backend", "./pjrt", false);
        check("graph", "./neuron-backend", false);
    }

    #[test]
    fn nothing_depends_on_tests_and_xtask_on_nothing_of_ours() {
        for room in ROOMS {
            check(room.name, "./appliance-tests", false);
            check(room.name, "./xtask", false);
            check("xtask", &format!("./{}", room.name), false);
        }
        check("appliance-tests", "./appliance", true);
        check("appliance-tests", "./engine", true);
    }

    #[test]
    fn borrowing_for_tests_or_builds_is_an_import_too() {
        check_kind("engine", "./cpu-backend", r#""dev""#, false);
        check_kind("model", "./engine", r#""build""#, false);
        check_kind("cpu-backend", "tokio", r#""dev""#, false);
    }

    #[test]
    fn outside_crates_stay_in_their_room() {
        check("appliance", "tokio", true);
        check("engine", "tokio", false);
        check("model", "tokenizers", false);
        check("appliance", "safetensors", false);
        check("model", "safetensors", true);
        check("cpu-backend", "nix", true);
        check("model", "nix", false);
        check("cpu-backend", "hyper-util", false);
        check("appliance", "libloading", false);
        check("appliance-tests", "hyper", true);
        check("model", "half", true);
    }

    #[test]
    fn the_engine_stays_small() {
        check("engine", "thiserror", true);
        check("engine", "serde", false);
        check_kind("engine", "proptest", r#""dev""#, true);
        check("engine", "proptest", false);
        check_kind("engine", "serde_json", r#""dev""#, false);
    }

    #[test]
    fn every_crate_has_a_room() {
        let broken = broken(&workspace("sidecar", &[], "null"));
        assert_eq!(broken.len(), 1, "{broken:?}");
        assert!(broken[0].starts_with("sidecar has no room"), "{broken:?}");
    }

    #[test]
    fn every_broken_rule_is_told_with_its_reason() {
        let broken = broken(&workspace("engine", &["./model", "tokio", "rand"], "null"));
        assert_eq!(
            broken,
            [
                "engine may not depend on model: it is a function of its inputs",
                "engine may not depend on tokio: waiting on many clients is the appliance's work; \
                 below it are plain threads",
                "engine may not depend on rand: the engine is a function of its inputs: nothing in \
                 its reach can do input or output",
            ]
        );
    }

    #[test]
    fn rules_speak_of_rooms_that_exist() {
        let imports = ROOMS.iter().flat_map(|room| room.imports);
        let ties = TIES.iter().flat_map(|tie| tie.rooms);
        for name in imports.chain(ties).chain(WORKSHOPS) {
            assert!(room(name).is_some(), "{name}");
        }
    }

    #[test]
    fn rooms_form_no_circle() {
        fn reaches(from: &str, to: &str) -> bool {
            let imports = room(from).map_or(&[][..], |room| room.imports);
            imports.iter().any(|next| *next == to || reaches(next, to))
        }
        for room in ROOMS {
            assert!(
                !reaches(room.name, room.name),
                "{} reaches itself",
                room.name
            );
        }
    }
}
