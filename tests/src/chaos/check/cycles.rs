//! Cycles in a graph of dependencies: strongly connected components (Tarjan), and of one that has several members
//! a shortest cycle, to be shown.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};

/// Why one comes before another.
pub type Kind = &'static str;

/// A graph whose nodes are numbers from 0.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    edges: Vec<Vec<(usize, Kind)>>,
}

impl Graph {
    /// A graph of so many nodes.
    pub fn new(nodes: usize) -> Graph {
        Graph { edges: vec![Vec::new(); nodes] }
    }

    /// One node more; its number.
    pub fn node(&mut self) -> usize {
        self.edges.push(Vec::new());
        self.edges.len() - 1
    }

    /// Says that `from` comes before `to`. A node's edge to itself says nothing.
    pub fn edge(&mut self, from: usize, to: usize, kind: Kind) {
        if from != to {
            self.edges[from].push((to, kind));
        }
    }

    /// For each component with a cycle, a shortest cycle through its first node: nodes, each with why it comes
    /// before the next.
    pub fn cycles(&self) -> Vec<Vec<(usize, Kind)>> {
        self.components().iter().filter(|c| c.len() > 1).filter_map(|c| self.cycle(c)).collect()
    }

    /// Tarjan's algorithm, without recursion: histories are long.
    fn components(&self) -> Vec<Vec<usize>> {
        const UNSEEN: usize = usize::MAX;
        let count = self.edges.len();
        let (mut index, mut low) = (vec![UNSEEN; count], vec![0; count]);
        let (mut on_stack, mut stack, mut next) = (vec![false; count], Vec::new(), 0);
        let mut found = Vec::new();
        for root in 0..count {
            if index[root] != UNSEEN {
                continue;
            }
            // Nodes that are being visited, each with its next edge.
            let mut visits = vec![(root, 0)];
            while let Some((node, edge)) = visits.last_mut() {
                let node = *node;
                if *edge == 0 {
                    (index[node], low[node]) = (next, next);
                    next += 1;
                    stack.push(node);
                    on_stack[node] = true;
                }
                if let Some((to, _)) = self.edges[node].get(*edge) {
                    *edge += 1;
                    if index[*to] == UNSEEN {
                        visits.push((*to, 0));
                    } else if on_stack[*to] {
                        low[node] = low[node].min(index[*to]);
                    }
                    continue;
                }
                visits.pop();
                if let Some((parent, _)) = visits.last() {
                    low[*parent] = low[*parent].min(low[node]);
                }
                if low[node] == index[node] {
                    let start = stack.iter().rposition(|&n| n == node).unwrap_or(0);
                    let component = stack.split_off(start);
                    component.iter().for_each(|&n| on_stack[n] = false);
                    found.push(component);
                }
            }
        }
        found
    }

    /// A shortest cycle through a component's first node.
    fn cycle(&self, component: &[usize]) -> Option<Vec<(usize, Kind)>> {
        let start = *component.first()?;
        let inside: std::collections::BTreeSet<usize> = component.iter().copied().collect();
        let mut from: BTreeMap<usize, (usize, Kind)> = BTreeMap::new();
        let mut queue = VecDeque::from([start]);
        while let Some(node) = queue.pop_front() {
            for &(to, kind) in self.edges[node].iter().filter(|(to, _)| inside.contains(to)) {
                if to == start {
                    let mut cycle = vec![(node, kind)];
                    while let Some(&(before, kind)) = from.get(&cycle[cycle.len() - 1].0) {
                        cycle.push((before, kind));
                    }
                    cycle.reverse();
                    return Some(cycle);
                }
                if let Entry::Vacant(unseen) = from.entry(to) {
                    unseen.insert((node, kind));
                    queue.push_back(to);
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(nodes: usize, edges: &[(usize, usize)]) -> Graph {
        let mut graph = Graph::new(nodes);
        edges.iter().for_each(|&(from, to)| graph.edge(from, to, "e"));
        graph
    }

    #[test]
    fn what_has_an_order_has_no_cycle() {
        assert!(graph(4, &[(0, 1), (1, 2), (0, 2), (2, 3), (0, 3)]).cycles().is_empty());
        assert!(graph(2, &[(1, 1)]).cycles().is_empty());
    }

    #[test]
    fn each_component_shows_a_cycle() {
        let found = graph(7, &[(0, 1), (1, 2), (2, 0), (2, 3), (3, 4), (4, 5), (5, 3), (5, 6)]).cycles();
        let mut nodes: Vec<Vec<usize>> =
            found.iter().map(|cycle| cycle.iter().map(|(node, _)| *node).collect()).collect();
        nodes.iter_mut().for_each(|cycle| cycle.sort());
        nodes.sort();
        assert_eq!(nodes, [vec![0, 1, 2], vec![3, 4, 5]]);
    }

    #[test]
    fn a_long_chain_needs_no_deep_stack() {
        let count = 300_000;
        let mut long = Graph::new(count);
        (1..count).for_each(|node| long.edge(node - 1, node, "e"));
        assert!(long.cycles().is_empty());
        long.edge(count - 1, 0, "e");
        assert_eq!(long.cycles()[0].len(), count);
    }
}
