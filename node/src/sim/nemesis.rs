//! Accidents: nodes that crash, partitions, elections, checkpoints at bad moments, databases that come and go.

use super::rng::Rng;
use super::world::{World, note};
use super::{MAIN, OTHER, Rule, app, is_broken};
use crate::command::Command;
use quire_vfs::format::PageSize;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// The accidents of a run. They have random numbers of their own, so that fewer of them are the first of the same.
pub(crate) struct Nemesis {
    rng: Rng,
    steps: u64,
    /// How likely each kind is.
    weights: [u64; 9],
    pause: u64,
}

pub(crate) fn create(world: &World, name: &str) {
    let page_size = PageSize::new(app::PAGE).unwrap();
    world.command(&Command::CreateDatabase { name: name.into(), page_size });
}

impl Nemesis {
    pub(crate) fn new(rng: &mut Rng, most: u64, is_storm: bool) -> Nemesis {
        let mut rng = Rng::new(rng.next());
        let steps = (rng.below(25) + if is_storm { 15 } else { 0 }).min(most);
        // Some runs are all about one thing.
        let weights =
            std::array::from_fn(|_| if rng.chance(350) && !is_storm { 0 } else { 1 + rng.below(10) });
        // Machines that lose power, and soon again: what is otherwise rare.
        let weights = if is_broken(Rule::Void) { [1, 20, 2, 0, 0, 0, 1, 2, 0] } else { weights };
        let pause = 20 + rng.below(300);
        Nemesis { rng, steps, weights, pause }
    }

    /// Lets all of them happen; returns how many.
    pub(crate) async fn rage(mut self, world: &Arc<World>) -> u64 {
        for _ in 0..self.steps {
            sleep(self.rng.millis(0, 2 * self.pause)).await;
            self.strike(world).await;
        }
        sleep(self.rng.millis(0, 500)).await;
        self.steps
    }

    async fn strike(&mut self, world: &Arc<World>) {
        let rng = &mut self.rng;
        // Drawn whatever comes of it, so that what follows is the same.
        let (kind, which, other) =
            (rng.below(self.weights.iter().sum::<u64>().max(1)), rng.next(), rng.next());
        let down = rng.millis(5, 1200);
        let mut left = kind;
        let kind = self.weights.iter().position(|weight| match left.checked_sub(*weight) {
            Some(rest) => {
                left = rest;
                false
            }
            None => true,
        });
        let nodes = world.nodes();
        let node = nodes[(which % nodes.len() as u64) as usize];
        match kind {
            Some(0) => crash(world, node, false, down).await,
            Some(1) => crash(world, node, true, down).await,
            Some(2) => {
                if let Some(leader) = world.leader() {
                    crash(world, leader, which & 1 == 0, down).await;
                }
            }
            Some(3) => {
                // Cut off: the leader or another, both ways or one.
                let alone = world.leader().filter(|_| which & 2 == 0).unwrap_or(node);
                let others = || nodes.iter().copied().filter(move |id| *id != alone);
                let out = others().map(|id| (alone, id)).filter(|_| other % 3 != 0);
                let back = others().map(|id| (id, alone)).filter(|_| other % 3 != 1);
                world.cut(out.chain(back));
            }
            Some(4) => {
                let side = |id: u64| other >> id & 1;
                let pairs = nodes.iter().flat_map(|a| nodes.iter().map(move |b| (*a, *b)));
                world.cut(pairs.filter(|(a, b)| side(*a) != side(*b)));
            }
            Some(5) => world.cut([]),
            Some(6) => {
                note!(world, "node {node} is impatient");
                world.rush(if which & 4 == 0 { node } else { world.leader().unwrap_or(node) });
            }
            Some(7) if which & 8 == 0 => world.close_idle(node),
            Some(7) => world.checkpoint(node),
            Some(8) => {
                let id_of = |id: u64| world.live(id)?.node.registry().id_of(OTHER);
                match world.live_nodes().into_iter().find_map(id_of) {
                    Some(database) => world.command(&Command::DropDatabase { database }),
                    None => create(world, OTHER),
                }
                if which & 1 == 0 {
                    create(world, OTHER);
                }
            }
            _ => {}
        }
    }
}

async fn crash(world: &Arc<World>, node: u64, power: bool, down: Duration) {
    if world.live(node).is_none() {
        return;
    }
    world.crash(node, power).await;
    let world = world.clone();
    tokio::spawn(async move {
        sleep(down).await;
        if !world.is_down(node) || world.failure().is_some() {
            return;
        }
        world.start(node);
        // Now and then it doesn't get far.
        let (likely, most) = if is_broken(Rule::Void) { (900, 15) } else { (300, 120) };
        let (again, soon, later) =
            world.rng(|rng| (rng.chance(likely), rng.millis(1, most), rng.millis(1, 300)));
        if again {
            sleep(soon).await;
            world.crash(node, false).await;
            sleep(later).await;
            if world.is_down(node) && world.failure().is_none() {
                world.start(node);
            }
        }
    });
}

/// Has all nodes open all databases.
pub(crate) async fn open_all(world: &World) {
    for id in world.nodes() {
        let Some(live) = world.live(id) else { continue };
        for database in live.node.registry().ids() {
            match tokio::time::timeout(Duration::from_secs(10), live.node.registry().open(database)).await {
                Ok(Ok(_)) => {}
                found => world.fail(format!("node {id} does not open database {database}: {found:?}")),
            }
        }
    }
}

/// Whether all nodes have applied and published everything.
pub(crate) fn is_at_rest(world: &World) -> bool {
    let states: Vec<_> = world.nodes().into_iter().map(|id| state(world, id)).collect();
    states.iter().all(|state| state.is_some() && *state == states[0])
}

type State = (u64, Vec<(u64, u64, String)>);

fn state(world: &World, id: u64) -> Option<State> {
    let live = world.live(id)?;
    for (name, why) in live.node.registry().faults() {
        world.fail(format!("{name} is fenced on node {id}: {why}"));
    }
    let mut databases = Vec::new();
    for database in live.node.registry().open_ones() {
        let status = database.status();
        if !database.is_idle() {
            return None;
        }
        databases.push((status.id, status.index, status.checksum));
    }
    Some((live.node.taken(), databases))
}

/// Notes how things stand.
pub(crate) fn describe(world: &World) {
    for id in world.nodes() {
        let Some(live) = world.live(id) else {
            note!(world, "node {id} is down");
            continue;
        };
        let raft = live.node.raft_status();
        note!(
            world,
            "node {id}: {:?}, term {}, leader {:?}, taken {}",
            raft.state,
            raft.term,
            raft.leader,
            live.node.taken()
        );
        for database in live.node.registry().open_ones() {
            if database.name == MAIN {
                note!(world, "node {id}: {}", database.debug());
            }
        }
    }
}
