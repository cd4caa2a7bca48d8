//! docs/operations/settings.md, written from the table of settings.

use super::resolved::{SETTINGS, Setting};

const ABOUT: &str = "\
# Settings

<!-- Written from the table in appliance/src/config/resolved.rs: see the test at the end of page.rs. -->

Each setting has one name in every place. `max-queue` is

1. the flag `--max-queue 64`, else
2. the environment variable `APPLIANCE_MAX_QUEUE=64`, else
3. the parameter `<prefix>/max-queue` of the SSM parameter store, on an instance of EC2: see
   [aws.md](aws.md), else
4. the line `max-queue = 64` of the instance's user data, if that is TOML, else
5. the line `max-queue = 64` in `/etc/appliance/appliance.toml`, or in the file that `--config FILE` or
   `APPLIANCE_CONFIG` names, else
6. its default.

The first place that has it wins. `appliance serve --print-config` shows what came out and from where, without secrets. A key
of the file that is no setting ends the start; a variable `APPLIANCE_..` that is none is warned of.

A change of the file, of which `POST /admin/reload` or SIGHUP tells, or of a parameter, which is noticed by
itself, does what the third column says: *live* holds from then on; *model* opens the model anew and puts
it in the place of the one that serves, without losing a request; *start* is read once, as the process
starts, and cannot be a parameter.

| Setting | Default | A change | Values | What it does |
|---|---|---|---|---|
";

/// The page that lists all settings.
pub fn page() -> String {
    SETTINGS
        .iter()
        .fold(ABOUT.to_owned(), |page, setting| page + &row(setting))
}

fn row(setting: &Setting) -> String {
    let default = match setting.default {
        "" => "must be set".to_owned(),
        default => format!("`{default}`"),
    };
    let also: String = setting
        .also
        .iter()
        .map(|name| format!(" Also `{name}`."))
        .collect();
    let row = format!(
        "| `{}` | {default} | {} | {} | {}{also} |\n",
        setting.name,
        setting.scope.name(),
        setting.form.allowed.replace('|', "\\|"),
        setting.help.trim(),
    );
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    /// To write it anew: `APPLIANCE_TEST_WRITE=1 cargo test -p appliance settings_page`.
    #[test]
    fn the_settings_page_is_current() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../docs/operations/settings.md"
        );
        if std::env::var_os("APPLIANCE_TEST_WRITE").is_some() {
            std::fs::write(path, page()).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap();
        assert!(
            written == page(),
            "docs/operations/settings.md is not what the table of settings says: run \
             APPLIANCE_TEST_WRITE=1 cargo test -p appliance settings_page"
        );
    }
}
