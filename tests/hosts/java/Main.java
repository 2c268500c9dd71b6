// Java's xerial sqlite-jdbc.

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.sql.Connection;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.Arrays;
import org.sqlite.SQLiteConfig;

public class Main {
    static Connection connect(String node, String parameters) throws SQLException {
        SQLiteConfig config = new SQLiteConfig();
        config.setBusyTimeout(300);
        config.setTransactionMode(SQLiteConfig.TransactionMode.IMMEDIATE);
        return config.createConnection("jdbc:sqlite:file:" + node + "?vfs=quire" + parameters);
    }

    static void load(String extension) throws SQLException {
        SQLiteConfig config = new SQLiteConfig();
        config.enableLoadExtension(true);
        // It stays loaded in the process when this connection is closed.
        try (Connection loader = config.createConnection("jdbc:sqlite::memory:");
                var load = loader.prepareStatement("SELECT load_extension(?)")) {
            load.setString(1, extension);
            load.execute();
        }
    }

    static void write(String node, int n) throws SQLException {
        try (Connection db = connect(node, "")) {
            db.setAutoCommit(false);
            try (Statement statement = db.createStatement()) {
                statement.executeUpdate("CREATE TABLE IF NOT EXISTS t(n INTEGER PRIMARY KEY, who TEXT)");
                statement.executeUpdate("INSERT OR IGNORE INTO t VALUES (" + n + ", 'java')");
            }
            db.commit();
        }
    }

    public static void main(String[] args) throws Exception {
        String[] nodes = Arrays.copyOfRange(args, 1, args.length);
        load(args[0]);
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            String[] words = line.split(" ");
            if (words[0].equals("write")) {
                for (int n = Integer.parseInt(words[1]); n <= Integer.parseInt(words[2]); n++) {
                    int at = n % nodes.length;
                    long deadline = System.nanoTime() + 60_000_000_000L;
                    while (true) {
                        try {
                            write(nodes[at], n);
                            break;
                        } catch (SQLException error) {
                            if (System.nanoTime() > deadline) {
                                throw error;
                            }
                            at = (at + 1) % nodes.length;
                            Thread.sleep(50);
                        }
                    }
                    System.out.println("wrote " + n);
                }
            } else {
                for (int i = 0; i < nodes.length; i++) {
                    try (Connection db = connect(nodes[i], "&reads=linearizable");
                            Statement statement = db.createStatement();
                            ResultSet rows = statement.executeQuery("SELECT count(*), sum(n) FROM t")) {
                        rows.next();
                        System.out.println("node " + i + " " + rows.getInt(1) + " " + rows.getInt(2));
                    }
                }
                System.out.println("done");
            }
        }
    }
}
