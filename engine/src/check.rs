//! What makes a step invalid: checked before anything runs, so that a bad step costs nobody
//! anything but its sender.

use std::ops::Range;

use crate::backend::{Cause, Fault, Profile};
use crate::step::{PageId, Row, Step, TokenId, Want};

/// Holds steps to what [`Step`] promises and a [`Profile`] allows. A device asks it before it runs
/// anything. It keeps memory from step to step.
#[derive(Clone, Default, Debug)]
pub struct Checker {
    /// For each page, the step that wrote it last and the row that did.
    owners: Vec<(u64, usize)>,
    /// Steps checked: owners of earlier ones do not count.
    steps: u64,
    /// Pages that are copied to.
    written: Vec<PageId>,
}

impl Checker {
    /// Checks `step` against what a device with this `profile` can run.
    ///
    /// # Errors
    /// [`Fault::Reject`] with the first promise that the step breaks.
    pub fn check(&mut self, step: &Step<'_>, profile: &Profile) -> Result<(), Fault> {
        self.find(step, profile)
            .map_err(|why| Fault::Reject(Cause(why)))
    }

    fn find(&mut self, step: &Step<'_>, profile: &Profile) -> Result<(), String> {
        for (index, row) in step.rows.iter().enumerate() {
            check_row(step, row, profile).map_err(|why| format!("row {index}: {why}"))?;
        }
        check_sizes(step, profile)?;
        self.check_copies(step, profile)?;
        self.check_sharing(step, profile)
    }

    /// No page is both read and written, or written twice.
    fn check_copies(&mut self, step: &Step<'_>, profile: &Profile) -> Result<(), String> {
        let written = &mut self.written;
        written.clear();
        written.extend(step.copies.iter().map(|copy| copy.to));
        written.sort_unstable();
        if let Some(twice) = written.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("page {} is copied to twice", twice[0].0));
        }
        for copy in step.copies {
            let outside = |page: &PageId| page.0 >= profile.pages;
            if let Some(PageId(page)) = [copy.from, copy.to].into_iter().find(outside) {
                let pages = profile.pages;
                return Err(format!("there is no page {page} to copy, only {pages}"));
            }
            if written.binary_search(&copy.from).is_ok() {
                return Err(format!("page {} is copied from and to", copy.from.0));
            }
        }
        Ok(())
    }

    /// No page that a row writes is anywhere else.
    fn check_sharing(&mut self, step: &Step<'_>, profile: &Profile) -> Result<(), String> {
        self.steps += 1;
        self.owners.resize(profile.pages as usize, (0, 0));
        let page_tokens = profile.page_tokens as usize;
        // The pages of a row that it uses, and the first of those that it writes.
        let used = |row: &Row| {
            let end = row.position as usize + row.tokens.len();
            let pages = &step.pages_of(row)[..end.div_ceil(page_tokens)];
            (pages, row.position as usize / page_tokens)
        };
        for (index, row) in step.rows.iter().enumerate() {
            let (pages, first) = used(row);
            for PageId(page) in &pages[first..] {
                let before = &mut self.owners[*page as usize];
                let (written, other) = std::mem::replace(before, (self.steps, index));
                if written == self.steps {
                    return Err(format!(
                        "page {page} is written by row {other} and by row {index}"
                    ));
                }
            }
        }
        for (index, row) in step.rows.iter().enumerate() {
            let (pages, first) = used(row);
            for PageId(page) in &pages[..first] {
                let (written, other) = self.owners[*page as usize];
                if written == self.steps {
                    return Err(format!(
                        "page {page} is written by row {other} and read by row {index}"
                    ));
                }
            }
        }
        Ok(())
    }
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
    if mask.words().iter().all(|word| *word == 0) {
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
fn check_sizes(step: &Step<'_>, profile: &Profile) -> Result<(), String> {
    let brought = step.rows.iter().map(|row| row.tokens.len());
    let decode = brought.clone().filter(|tokens| *tokens == 1).count();
    let prefill: usize = brought.filter(|tokens| *tokens > 1).sum();
    let (most_prefill, most_decode) = (profile.prefill.most(), profile.decode.most());
    if prefill > most_prefill as usize {
        return Err(format!(
            "{prefill} tokens of prefill rows exceed {most_prefill}"
        ));
    }
    if decode > most_decode as usize {
        return Err(format!("{decode} decode rows exceed {most_decode}"));
    }
    if !profile.mixed && decode > 0 && prefill > 0 {
        return Err(format!(
            "{decode} decode rows and {prefill} tokens of prefill rows may not share a step"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Axis;
    use crate::step::{PageCopy, TokenMask};

    /// Four pages of four positions, ten tokens.
    fn profile() -> Profile {
        Profile {
            prefill: Axis::Buckets([4, 8].into()),
            decode: Axis::Buckets([1, 2].into()),
            context: Axis::UpTo(12),
            mixed: false,
            page_tokens: 4,
            pages: 4,
            vocabulary: 10,
            candidates: 10,
            depth: 1,
        }
    }

    fn row(tokens: Range<u32>, pages: Range<u32>, position: u32) -> Row {
        Row {
            tokens,
            pages,
            position,
            mask: None,
            want: Want::Candidates { width: 1 },
        }
    }

    /// What is wrong with a step of these rows; its tokens are 0 to 9 and an eleventh that is none,
    /// its pages 0 to 3, one that is none, and 0 again.
    fn found(rows: &[Row], copies: &[[u32; 2]]) -> Option<String> {
        let tokens: Vec<_> = (0..=10).map(TokenId).collect();
        let copies: Vec<_> = copies
            .iter()
            .map(|[from, to]| PageCopy {
                from: PageId(*from),
                to: PageId(*to),
            })
            .collect();
        let masks = [
            &TokenMask::only(10, [TokenId(3)]),
            &TokenMask::only(10, []),
            &TokenMask::only(64, [TokenId(3)]),
        ];
        let step = Step {
            copies: &copies,
            tokens: &tokens,
            pages: &[0, 1, 2, 3, 4, 0].map(PageId),
            masks: &masks,
            rows,
        };
        let mut checker = Checker::default();
        let first = checker.check(&step, &profile());
        assert_eq!(checker.check(&step, &profile()), first, "a second time");
        match first {
            Ok(()) => None,
            Err(Fault::Reject(Cause(why))) => Some(why),
            Err(other) => panic!("{other}"),
        }
    }

    fn check(rows: &[Row], why: &str) {
        assert_eq!(found(rows, &[]).as_deref(), Some(why));
    }

    #[test]
    fn what_keeps_every_promise_passes() {
        assert_eq!(found(&[], &[]), None);
        assert_eq!(found(&[], &[[0, 1], [0, 2]]), None);
        let masked = Row {
            mask: Some(0),
            ..row(0..8, 1..4, 4)
        };
        assert_eq!(found(&[masked], &[[0, 2]]), None);
        // Both read page 0, each writes its own.
        let shared = [row(3..4, 0..2, 4), row(3..4, 4..6, 0)];
        assert!(found(&shared, &[]).is_some());
        let apart = [row(3..4, 0..2, 4), row(3..4, 2..3, 0)];
        assert_eq!(found(&apart, &[]), None);
    }

    #[test]
    fn a_bad_row_is_named_by_what_is_wrong() {
        check(&[row(0..0, 0..1, 0)], "row 0: it brings no token");
        check(&[row(9..12, 0..1, 0)], "row 0: its tokens are 9..12 of 11");
        check(&[row(0..2, 5..9, 0)], "row 0: its pages are 5..9 of 6");
        check(&[row(10..11, 0..1, 0)], "row 0: token 10 is not below 10");
        let twice = [row(0..1, 0..1, 0), row(0..1, 4..5, 0)];
        check(&twice, "row 1: there is no page 4, only 4");
        check(
            &[row(0..2, 0..4, 11)],
            "row 0: 2 tokens from position 11 on exceed a context of 12",
        );
        check(
            &[row(0..1, 0..4, u32::MAX)],
            "row 0: 1 tokens from position 4294967295 on exceed a context of 12",
        );
        check(
            &[row(0..5, 0..1, 0)],
            "row 0: 1 pages of 4 positions do not hold 5",
        );
    }

    #[test]
    fn a_bad_mask_is_named_by_what_is_wrong() {
        let masked = |mask| Row {
            mask: Some(mask),
            ..row(0..1, 0..1, 0)
        };
        check(&[masked(1)], "row 0: mask 1 allows no token");
        check(&[masked(2)], "row 0: mask 2 has 2 words, not 1");
        check(&[masked(3)], "row 0: there is no mask 3, only 3");
    }

    #[test]
    fn a_bad_wish_is_named_by_what_is_wrong() {
        let wanting = |want| Row {
            want,
            ..row(0..2, 0..1, 0)
        };
        let none = "row 0: it wants candidates of width 0, at least 1 is needed";
        check(&[wanting(Want::Candidates { width: 0 })], none);
        let each = |width, targets| wanting(Want::EachPosition { width, targets });
        check(&[each(0, 1..3)], none);
        check(&[each(1, 1..2)], "row 0: it has 1 targets for 2 tokens");
        check(&[each(1, 9..11)], "row 0: token 10 is not below 10");
        check(&[each(1, 10..12)], "row 0: its targets are 10..12 of 11");
    }

    #[test]
    fn a_step_that_is_too_large_or_mixed_is_refused() {
        let decode = |page| row(0..1, page..page + 1, 0);
        check(&[decode(0), decode(1), decode(2)], "3 decode rows exceed 2");
        check(
            &[row(0..4, 0..1, 0), row(0..5, 1..3, 0)],
            "9 tokens of prefill rows exceed 8",
        );
        check(
            &[row(0..4, 0..1, 0), decode(1)],
            "1 decode rows and 4 tokens of prefill rows may not share a step",
        );
    }

    #[test]
    fn a_page_that_is_written_is_nobody_elses() {
        check(
            &[row(0..4, 0..1, 0), row(0..4, 5..6, 0)],
            "page 0 is written by row 0 and by row 1",
        );
        check(
            &[row(0..1, 0..2, 4), row(0..1, 5..6, 3)],
            "page 0 is written by row 1 and read by row 0",
        );
    }

    #[test]
    fn copies_that_would_depend_on_their_order_are_refused() {
        let refused = |copies: &[[u32; 2]], why: &str| {
            assert_eq!(found(&[], copies).as_deref(), Some(why));
        };
        refused(&[[0, 4]], "there is no page 4 to copy, only 4");
        refused(&[[4, 0]], "there is no page 4 to copy, only 4");
        refused(&[[0, 3], [1, 3]], "page 3 is copied to twice");
        refused(&[[0, 3], [3, 1]], "page 3 is copied from and to");
    }
}
