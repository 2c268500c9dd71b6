//! Scenes whose nodes can be cut off from each other: each in a network namespace of its own ([`crate::chaos::net`]), which
//! needs root and /dev/net/tun. Apps and harness reach every node all the same.

use crate::chaos::links::Link;
use crate::chaos::net::Network;
use crate::crash::{PATIENCE, Scene};
use crate::hosts::skip;

impl Scene {
    /// As [`Scene::start`], with nodes that can be cut off where that is possible; else it says so, and `CI=true` fails. The
    /// calling thread enters the network.
    pub fn start_apart(flags: &[&str]) -> Scene {
        let mut test = Scene::prepare(flags);
        let mut network = match Network::start(1) {
            Ok(network) => network,
            Err(why) => {
                skip(&format!("partitions, which need root and /dev/net/tun: {why}"));
                test.cluster.start().unwrap();
                return Scene::on(test);
            }
        };
        test.cluster.nodes.iter_mut().for_each(|node| network.place(node).unwrap());
        let voters: Vec<u64> = test.cluster.nodes.iter().map(|node| node.id).collect();
        for id in &voters {
            Network::start_node(Some(&network), &mut test.cluster, *id).unwrap();
            if *id == voters[0] {
                test.cluster.wait_leader(PATIENCE).unwrap();
            }
        }
        let all_vote = |cluster: &quire_node::cli::local::LocalCluster| {
            cluster.nodes.iter().all(|node| node.voters().is_some_and(|found| found == voters))
        };
        test.cluster.wait("all nodes to vote", PATIENCE, all_vote).unwrap();
        let mut scene = Scene::on(test);
        scene.network = Some(network);
        scene
    }

    /// Whether nodes can be cut off.
    pub fn can_cut(&self) -> bool {
        self.network.is_some()
    }

    /// Nothing gets from this node to the others, nor from them to it, until [`Scene::heal`].
    pub fn cut(&self, node: u64) {
        let mut links = self.network.as_ref().expect("Scene::can_cut").links();
        for other in self.test.cluster.nodes.iter().map(|other| other.id).filter(|other| *other != node) {
            let cut = Link { cut: true, ..Link::default() };
            links.set(node as u8, other as u8, cut);
            links.set(other as u8, node as u8, cut);
        }
    }

    /// The network is whole again.
    pub fn heal(&self) {
        if let Some(network) = &self.network {
            network.links().heal();
        }
    }
}
