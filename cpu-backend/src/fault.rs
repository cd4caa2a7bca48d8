//! What makes a step invalid: checked before anything runs, so that a bad step costs nobody
//! anything but its sender.

use std::ops::Range;

use engine::{Cause, Fault, PageId, Profile, Row, Step, TokenId, Want};

/// Checks `step` against what the device can run. `owners` is scratch.
pub(crate) fn check(
    step: &Step<'_>,
    profile: &Profile,
    owners: &mut Vec<Option<usize>>,
) -> Result<(), Fault> {
    for (index, row) in step.rows.iter().enumerate() {
        check_row(step, row, profile).map_err(|why| reject(format!("row {index}: {why}")))?;
    }
    check_sizes(step, profile)?;
    check_copies(step, profile)?;
    check_sharing(step, profile, owners)
}

pub(crate) fn reject(why: String) -> Fault {
    Fault::Reject(Cause(why))
}

/// The elements of `range`, if they are all there.
fn part<'a, T>(name: &str, all: &'a [T], range: &Range<u32>) -> Result<&'a [T], String> {
    let Range { start, end } = *range;
    all.get(start as usize..end as usize)
        .ok_or_else(|| format!("its {name} are {start}..{end} of {}", all.len()))
}

fn check_row(step: &Step<'_>, row: &Row, profile: &Profile) -> Result<(), String> {
    let tokens = part("tokens", step.tokens, &row.tokens)?;
    let pages = part("pages", step.pages, &row.pages)?;
    if tokens.is_empty() {
        return Err("it brings no token".into());
    }
    check_tokens(tokens, profile)?;
    let (position, brings) = (u64::from(row.position), tokens.len() as u64);
    let most = u64::from(profile.context.most());
    if position + brings > most {
        return Err(format!(
            "{brings} tokens from position {position} on exceed a context of {most}"
        ));
    }
    let page_tokens = u64::from(profile.page_tokens);
    if (pages.len() as u64) * page_tokens < position + brings {
        let pages = pages.len();
        return Err(format!(
            "{pages} pages of {page_tokens} positions do not hold {}",
            position + brings
        ));
    }
    if let Some(PageId(page)) = pages.iter().find(|page| page.0 >= profile.pages) {
        return Err(format!("there is no page {page}, only {}", profile.pages));
    }
    check_mask(step, row, profile)?;
    check_want(step, row, profile)
}

fn check_tokens(tokens: &[TokenId], profile: &Profile) -> Result<(), String> {
    let vocabulary = profile.vocabulary;
    match tokens.iter().find(|token| token.0 >= vocabulary) {
        Some(token) => Err(format!("token {token} is not below {vocabulary}")),
        None => Ok(()),
    }
}

fn check_mask(step: &Step<'_>, row: &Row, profile: &Profile) -> Result<(), String> {
    let Some(index) = row.mask else { return Ok(()) };
    let Some(mask) = step.masks.get(index as usize) else {
        let masks = step.masks.len();
        return Err(format!("there is no mask {index}, only {masks}"));
    };
    let (words, needed) = (mask.words().len(), profile.vocabulary.div_ceil(32) as usize);
    if words != needed {
        return Err(format!("mask {index} has {words} words, not {needed}"));
    }
    if mask.count() == 0 {
        return Err(format!("mask {index} allows no token"));
    }
    Ok(())
}

fn check_want(step: &Step<'_>, row: &Row, profile: &Profile) -> Result<(), String> {
    let width = match &row.want {
        Want::Nothing => return Ok(()),
        Want::Candidates { width } => *width,
        Want::EachPosition { width, targets } => {
            let targets = part("targets", step.tokens, targets)?;
            let (given, needed) = (targets.len(), row.tokens.len());
            if given != needed {
                return Err(format!("it has {given} targets for {needed} tokens"));
            }
            check_tokens(targets, profile)?;
            *width
        }
    };
    match width {
        0 => Err("it wants candidates of width 0, at least 1 is needed".into()),
        _ => Ok(()),
    }
}

/// How many tokens and rows there are.
fn check_sizes(step: &Step<'_>, profile: &Profile) -> Result<(), Fault> {
    let brought = step.rows.iter().map(|row| row.tokens.len());
    let decode = brought.clone().filter(|tokens| *tokens == 1).count();
    let prefill: usize = brought.filter(|tokens| *tokens > 1).sum();
    let (most_prefill, most_decode) = (profile.prefill.most(), profile.decode.most());
    if prefill > most_prefill as usize {
        let why = format!("{prefill} tokens of prefill rows exceed {most_prefill}");
        return Err(reject(why));
    }
    if decode > most_decode as usize {
        return Err(reject(format!("{decode} decode rows exceed {most_decode}")));
    }
    Ok(())
}

/// No page is both read and written, or written twice.
fn check_copies(step: &Step<'_>, profile: &Profile) -> Result<(), Fault> {
    let mut written: Vec<_> = step.copies.iter().map(|copy| copy.to).collect();
    written.sort_unstable();
    if let Some(twice) = written.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(reject(format!("page {} is copied to twice", twice[0].0)));
    }
    for copy in step.copies {
        if let Some(PageId(page)) = [copy.from, copy.to]
            .into_iter()
            .find(|page| page.0 >= profile.pages)
        {
            let pages = profile.pages;
            return Err(reject(format!(
                "there is no page {page} to copy, only {pages}"
            )));
        }
        if written.binary_search(&copy.from).is_ok() {
            return Err(reject(format!(
                "page {} is copied from and to",
                copy.from.0
            )));
        }
    }
    Ok(())
}

/// No page that a row writes is anywhere else.
fn check_sharing(
    step: &Step<'_>,
    profile: &Profile,
    owners: &mut Vec<Option<usize>>,
) -> Result<(), Fault> {
    owners.clear();
    owners.resize(profile.pages as usize, None);
    let page_tokens = profile.page_tokens as usize;
    // The pages of a row that it uses, and the first of those that it writes.
    let used = |row: &Row| {
        let end = row.position as usize + row.tokens.len();
        let pages = &step.pages_of(row)[..end.div_ceil(page_tokens)];
        (pages, row.position as usize / page_tokens)
    };
    for (index, row) in step.rows.iter().enumerate() {
        let (pages, first) = used(row);
        for page in &pages[first..] {
            if let Some(other) = owners[page.0 as usize].replace(index) {
                let page = page.0;
                let why = format!("page {page} is written by row {other} and by row {index}");
                return Err(reject(why));
            }
        }
    }
    for (index, row) in step.rows.iter().enumerate() {
        let (pages, first) = used(row);
        for page in &pages[..first] {
            if let Some(other) = owners[page.0 as usize] {
                let page = page.0;
                let why = format!("page {page} is written by row {other} and read by row {index}");
                return Err(reject(why));
            }
        }
    }
    Ok(())
}
