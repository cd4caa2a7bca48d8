//! The device's KV pages: who holds them, which prefix each one keeps, which is forgotten first.
//!
//! A page is *held* (by one or more sequences), *kept* (held by none, but its contents answer to a
//! prefix hash) or *free*. Kept pages are handed out again when no free one is left, the least
//! recently held first.

use std::collections::BTreeMap;

use siphasher::sip128::SipHasher13;

use crate::step::{PageId, TokenId};

/// Names the contents of a full page and of all pages before it. 128 bits keyed with a secret: two
/// prefixes never meet, not even when somebody tries.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct PrefixHash(u128);

/// All KV pages of a device.
#[derive(Debug)]
pub(crate) struct Pages {
    page_tokens: u32,
    slots: Vec<Slot>,
    free: Vec<PageId>,
    /// A tree and not a hash map: nothing here may depend on a process's own randomness.
    by_hash: BTreeMap<PrefixHash, PageId>,
    kept: Kept,
    hasher: SipHasher13,
    bytes: Vec<u8>,
}

#[derive(Clone, Default, Debug)]
struct Slot {
    holders: u32,
    hash: Option<PrefixHash>,
    /// Neighbours in the list of kept pages.
    older: Option<PageId>,
    newer: Option<PageId>,
}

/// The list of kept pages, linked through their slots.
#[derive(Default, Debug)]
struct Kept {
    oldest: Option<PageId>,
    newest: Option<PageId>,
    len: usize,
}

impl Pages {
    pub(crate) fn new(pages: u32, page_tokens: u32, secret: [u8; 16]) -> Self {
        Self {
            page_tokens,
            slots: vec![Slot::default(); pages as usize],
            // Popped from the end: page 0 first.
            free: (0..pages).rev().map(PageId).collect(),
            by_hash: BTreeMap::new(),
            kept: Kept::default(),
            hasher: SipHasher13::new_with_key(&secret),
            bytes: Vec::new(),
        }
    }

    /// Positions a page holds.
    pub(crate) fn page_tokens(&self) -> u32 {
        self.page_tokens
    }

    /// Pages needed for so many positions.
    pub(crate) fn needed(&self, positions: u32) -> usize {
        positions.div_ceil(self.page_tokens) as usize
    }

    /// Pages on the device.
    pub(crate) fn total(&self) -> usize {
        self.slots.len()
    }

    /// Pages that can be taken now: free and kept ones.
    pub(crate) fn available(&self) -> usize {
        self.free.len() + self.kept.len
    }

    /// Takes a page for one holder; forgets the oldest kept prefix if it must.
    pub(crate) fn take(&mut self) -> Option<PageId> {
        let page = match self.free.pop() {
            Some(page) => page,
            None => self.forget_the_oldest()?,
        };
        self.slot(page).holders = 1;
        Some(page)
    }

    /// Adds a holder to a page that is held or kept.
    pub(crate) fn hold(&mut self, page: PageId) {
        let slot = self.slot(page);
        slot.holders += 1;
        if slot.holders == 1 {
            self.unlink(page);
        }
    }

    /// Takes a holder away. With the last one the page is kept if a prefix answers to it, else
    /// free.
    pub(crate) fn release(&mut self, page: PageId) {
        let slot = self.slot(page);
        slot.holders -= 1;
        match (slot.holders, slot.hash) {
            (0, Some(_)) => self.link_as_newest(page),
            (0, None) => self.free.push(page),
            _ => {}
        }
    }

    /// Makes a held page, whose contents have landed, findable by `hash`. A second page with the
    /// same contents stays private.
    pub(crate) fn publish(&mut self, page: PageId, hash: PrefixHash) {
        if self.slot(page).hash.is_none() && !self.by_hash.contains_key(&hash) {
            self.by_hash.insert(hash, page);
            self.slot(page).hash = Some(hash);
        }
    }

    /// The page whose contents answer to `hash`.
    pub(crate) fn find(&self, hash: PrefixHash) -> Option<PageId> {
        self.by_hash.get(&hash).copied()
    }

    /// Whether a page would have to leave the kept ones to be held.
    pub(crate) fn is_kept(&self, page: PageId) -> bool {
        self.slots[page.0 as usize].holders == 0
    }

    /// The hash of a full page: of its tokens, all before it, and the salt.
    pub(crate) fn hash(
        &mut self,
        before: Option<PrefixHash>,
        salt: u64,
        tokens: &[TokenId],
    ) -> PrefixHash {
        self.bytes.clear();
        // A first page starts with 8 bytes of salt, later ones with 16 bytes of hash: the length
        // keeps the two apart.
        match before {
            None => self.bytes.extend(salt.to_le_bytes()),
            Some(PrefixHash(hash)) => self.bytes.extend(hash.to_le_bytes()),
        }
        self.bytes
            .extend(tokens.iter().flat_map(|token| token.0.to_le_bytes()));
        PrefixHash(self.hasher.hash(&self.bytes).into())
    }

    fn slot(&mut self, page: PageId) -> &mut Slot {
        &mut self.slots[page.0 as usize]
    }

    fn forget_the_oldest(&mut self) -> Option<PageId> {
        let page = self.kept.oldest?;
        self.unlink(page);
        if let Some(hash) = self.slot(page).hash.take() {
            self.by_hash.remove(&hash);
        }
        Some(page)
    }

    fn link_as_newest(&mut self, page: PageId) {
        let older = self.kept.newest.replace(page);
        *self.slot(page) = Slot {
            older,
            newer: None,
            ..*self.slot(page)
        };
        match older {
            Some(older) => self.slot(older).newer = Some(page),
            None => self.kept.oldest = Some(page),
        }
        self.kept.len += 1;
    }

    fn unlink(&mut self, page: PageId) {
        let slot = self.slot(page);
        let (older, newer) = (slot.older.take(), slot.newer.take());
        match older {
            Some(older) => self.slot(older).newer = newer,
            None => self.kept.oldest = newer,
        }
        match newer {
            Some(newer) => self.slot(newer).older = older,
            None => self.kept.newest = older,
        }
        self.kept.len -= 1;
    }

    /// Compares the books with what sequences say they hold: `held` names each page once for each
    /// holder.
    pub(crate) fn audit(&self, held: impl Iterator<Item = PageId>) -> Result<(), String> {
        let mut holders = vec![0_u32; self.slots.len()];
        held.for_each(|page| holders[page.0 as usize] += 1);
        let mut idle = vec![0_u32; self.slots.len()];
        self.free.iter().for_each(|page| idle[page.0 as usize] += 1);
        let mut next = self.kept.oldest;
        while let Some(page) = next {
            idle[page.0 as usize] += 1;
            next = self.slots[page.0 as usize].newer;
        }
        for (page, slot) in self.slots.iter().enumerate() {
            let (counted, idle) = (holders[page], idle[page]);
            if slot.holders != counted || idle != u32::from(counted == 0) {
                return Err(format!(
                    "page {page}: {counted} sequences hold it, the books say {}; idle {idle} times",
                    slot.holders
                ));
            }
        }
        let idle = idle.iter().sum::<u32>() as usize;
        if idle != self.available() {
            return Err(format!(
                "{idle} pages are idle, the books say {}",
                self.available()
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(n: u32) -> Pages {
        Pages::new(n, 2, [7; 16])
    }

    fn tokens(ids: &[u32]) -> Vec<TokenId> {
        ids.iter().copied().map(TokenId).collect()
    }

    #[test]
    fn a_hash_depends_on_tokens_parent_salt_and_secret() {
        let mut pages = pages(1);
        let ab = pages.hash(None, 0, &tokens(&[1, 2]));
        assert_eq!(ab, pages.hash(None, 0, &tokens(&[1, 2])));
        assert_ne!(ab, pages.hash(None, 0, &tokens(&[2, 1])));
        assert_ne!(ab, pages.hash(None, 1, &tokens(&[1, 2])));
        assert_ne!(ab, pages.hash(Some(ab), 0, &tokens(&[1, 2])));
        let mut other = Pages::new(1, 2, [8; 16]);
        assert_ne!(ab, other.hash(None, 0, &tokens(&[1, 2])));
    }

    #[test]
    fn the_least_recently_held_prefix_is_forgotten_first() {
        let mut pages = pages(2);
        let hashes = [1, 2].map(|id| pages.hash(None, 0, &tokens(&[id, id])));
        let taken = [pages.take().unwrap(), pages.take().unwrap()];
        assert_eq!(pages.take(), None);
        for (page, hash) in taken.into_iter().zip(hashes) {
            pages.publish(page, hash);
            pages.release(page);
        }
        // Held again and released: page 0 is now the younger one.
        pages.hold(taken[0]);
        pages.release(taken[0]);
        assert_eq!(pages.take(), Some(taken[1]));
        assert_eq!(pages.find(hashes[1]), None);
        assert_eq!(pages.find(hashes[0]), Some(taken[0]));
        pages.audit([taken[1]].into_iter()).unwrap();
    }

    #[test]
    fn a_second_page_with_the_same_contents_stays_private() {
        let mut pages = pages(2);
        let hash = pages.hash(None, 0, &tokens(&[1, 2]));
        let (first, second) = (pages.take().unwrap(), pages.take().unwrap());
        pages.publish(first, hash);
        pages.publish(second, hash);
        assert_eq!(pages.find(hash), Some(first));
        pages.release(second);
        assert_eq!(pages.take(), Some(second));
    }

    #[test]
    fn the_audit_finds_a_page_held_in_secret() {
        let mut pages = pages(2);
        let page = pages.take().unwrap();
        pages.audit([page].into_iter()).unwrap();
        pages.audit([page, page].into_iter()).unwrap_err();
        pages.audit([].into_iter()).unwrap_err();
    }
}
