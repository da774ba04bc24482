//! Places for strangers: so many in all, and a share of them for one address.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use parking_lot::Mutex;

/// So many in all, and so many of one address.
#[derive(Debug)]
pub(super) struct Places {
    max: usize,
    max_of_one: usize,
    taken: Mutex<(usize, HashMap<IpAddr, usize>)>,
}

impl Places {
    pub(super) fn new(max: usize, max_of_one: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            max_of_one,
            taken: Mutex::default(),
        })
    }

    pub(super) fn take(self: &Arc<Self>, from: IpAddr) -> Option<Place> {
        let from = origin(from);
        let mut taken = self.taken.lock();
        let (all, by) = &mut *taken;
        let of_one = by.get(&from).copied().unwrap_or(0);
        if *all >= self.max || of_one >= self.max_of_one {
            return None;
        }
        *all += 1;
        by.insert(from, of_one + 1);
        Some(Place {
            places: Arc::clone(self),
            from,
        })
    }
}

/// A place, free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    from: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        let (all, by) = &mut *taken;
        *all -= 1;
        let left = by.get_mut(&self.from).map(|of_one| {
            *of_one -= 1;
            *of_one
        });
        if left == Some(0) {
            by.remove(&self.from);
        }
    }
}

/// What one party has at hand: an address, or an IPv6 network of 2^64 of them.
fn origin(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(from) => {
            let network = u128::from(from) & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from(network))
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_gets_its_share_of_places_only() {
        let places = Places::new(16, 4);
        let one: IpAddr = "2001:db8::1".parse().unwrap();
        let neighbour: IpAddr = "2001:db8::2".parse().unwrap();
        let taken: Vec<_> = (0..4).map(|_| places.take(one).unwrap()).collect();
        assert!(places.take(neighbour).is_none(), "the same /64");
        let other: IpAddr = "192.0.2.1".parse().unwrap();
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
        assert!(places.take(other).is_some() && origin(mapped) == other);
        drop(taken);
        assert!(places.take(neighbour).is_some());
        assert_eq!(
            places.taken.lock().1.len(),
            0,
            "nothing is kept of those who left"
        );
        let all: Vec<_> = (1..=16u32)
            .map(|n| places.take(IpAddr::from(n.to_be_bytes())).unwrap())
            .collect();
        assert!(places.take(other).is_none(), "{} are enough", all.len());
    }
}
