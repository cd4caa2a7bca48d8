//! Links of the documents: one that points into the repository must find its file and its heading.

use std::path::{Component, Path, PathBuf};

use pulldown_cmark::{Event, Parser, Tag, TagEnd};

/// Every link of the document at `path` that leads nowhere. Addresses outside are not asked.
pub(crate) fn broken(root: &Path, path: &str, text: &str) -> Vec<String> {
    let folder = Path::new(path).parent().unwrap_or(Path::new(""));
    let links = Parser::new(text).filter_map(|event| match event {
        Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => Some(dest_url),
        _ => None,
    });
    links
        .filter(|link| leads_nowhere(root, folder, path, link))
        .map(|link| format!("{path} links to {link}, which is not there"))
        .collect()
}

fn leads_nowhere(root: &Path, folder: &Path, document: &str, link: &str) -> bool {
    if link.contains("://") || link.starts_with("mailto:") {
        return false;
    }
    let (file, heading) = link
        .split_once('#')
        .map_or((link, None), |(f, h)| (f, Some(h)));
    let target = if file.is_empty() {
        Some(document.into())
    } else {
        inside(&folder.join(file))
    };
    let Some(target) = target.map(|target: PathBuf| root.join(target)) else {
        return true;
    };
    match heading {
        None => !target.exists(),
        Some(heading) => !std::fs::read_to_string(target)
            .is_ok_and(|text| headings(&text).any(|has| has == heading)),
    }
}

/// `path` without `.` and `..`; `None` where it leaves the repository.
fn inside(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => clean.push(part),
            Component::CurDir => {}
            Component::ParentDir if clean.pop() => {}
            _ => return None,
        }
    }
    Some(clean)
}

/// The anchors of a document's headings, as GitHub makes them: lower case, hyphens for spaces,
/// punctuation dropped.
fn headings(text: &str) -> impl Iterator<Item = String> {
    let mut current: Option<String> = None;
    Parser::new(text).filter_map(move |event| {
        match event {
            Event::Start(Tag::Heading { .. }) => current = Some(String::new()),
            Event::End(TagEnd::Heading(_)) => return current.take().map(|title| anchor(&title)),
            Event::Text(text) | Event::Code(text) => {
                if let Some(title) = &mut current {
                    title.push_str(&text);
                }
            }
            _ => {}
        }
        None
    })
}

fn anchor(title: &str) -> String {
    title
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
        .map(|c| if c == ' ' { '-' } else { c })
        .flat_map(char::to_lowercase)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks a link written in `docs/here.md`, as seen from this crate's folder.
    fn check(link: &str, found: bool) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let text = format!("# A `title`, with marks\n\nSee [it]({link}).\n");
        assert_eq!(
            broken(root, "src/house/links.rs", &text).is_empty(),
            found,
            "{link}"
        );
    }

    #[test]
    fn links_inside_must_find_their_file() {
        check("rooms.rs", true);
        check("./rooms.rs", true);
        check("../main.rs", true);
        check("../", true);
        check("nowhere.rs", false);
        check("../../../../../etc/passwd", false);
        check("/etc/passwd", false);
    }

    #[test]
    fn links_outside_are_not_asked() {
        check("https://example.com/nothing", true);
        check("mailto:nobody@example.com", true);
    }

    #[test]
    fn headings_are_found_as_github_names_them() {
        assert_eq!(anchor("A `title`, with marks"), "a-title-with-marks");
        let found: Vec<_> = headings("# One\n\ntext\n\n## Two `b`-c\n").collect();
        assert_eq!(found, ["one", "two-b-c"]);
    }

    #[test]
    fn code_holds_no_links() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        assert!(broken(root, "src/main.rs", "```\n[a](nowhere)\n```\n").is_empty());
    }
}
